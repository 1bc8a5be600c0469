-- What the transitions of rate limiters share; it stands before the text of each of them, and after line.lua.
--
-- KEYS[1] states   text: "<id>:<numbers>;" for each limit that was charged: the state as ailf/algorithms.py has it
-- KEYS[2] queue, KEYS[3] waiters   see line.lua
-- KEYS[4…] slots   for each limit of concurrency, in their order: sorted set: "<token> <number>" -> ms when it ends
-- ARGV             of each transition its own; a limit comes as five: kind, id, three parameters
-- returns nothing by itself
-- writes  KEYS[1] with the time until it is as good as fresh as TTL, and a margin; KEYS[4…] with the end of the last
--
-- The arithmetic is that of ailf/algorithms.py, where it is explained, to the bit; here no sum may exceed LARGEST, so
-- what is subtracted comes first. A limit is a table:
--   kind, id; rate, per, capacity (b: bucket); per, capacity (f: fixed); width, per, capacity (s: sliding);
--   ttl, capacity (c: concurrency)

local LARGEST = 9007199254740992
local FLOORS = 4
local EXACT = 99999999999999 -- what Lua itself writes in full
local MARGIN = 1000
local EACH = 5
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local line = { queue = KEYS[2], waiters = KEYS[3] }
local stored = redis.call('GET', KEYS[1]) or ''
local slots = 3 -- the last key that is taken

local function state_of(id)
  local found = {}
  local _, colon = string.find(stored, id .. ':', 1, true)
  if colon then
    for digits in string.gmatch(string.sub(stored, colon + 1, string.find(stored, ';', colon, true)), '%d+') do
      found[#found + 1] = tonumber(digits)
    end
  end
  return found
end

local function limit_at(first)
  local kind = ARGV[first]
  local one, two, three = tonumber(ARGV[first + 2]), tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4])
  local limit = { kind = kind, id = ARGV[first + 1] }
  if kind == 'b' then
    limit.rate, limit.per, limit.capacity = one, two, three
  elseif kind == 'f' then
    limit.per, limit.capacity = one, two
  elseif kind == 's' then
    limit.width, limit.per, limit.capacity = one, two, three
  else
    limit.ttl, limit.capacity = one, two
    slots = slots + 1
    limit.slots = KEYS[slots]
  end
  if kind ~= 'c' then limit.state = state_of(limit.id) end
  return limit
end

-- Bucket: the time that counts, and the debt then.
local function debt_of(limit)
  local state = limit.state
  if not state[1] then return now, 0 end
  local latest = max(now, state[1])
  return latest, max(0, state[2] - limit.rate * (latest - state[1]))
end

-- Bucket: the lows of the debt, with their times.
local function lows_of(state)
  local lows = {}
  for at = 3, #state, 2 do lows[#lows + 1] = { state[1] - state[at], state[at + 1] } end
  return lows
end

local function with_lows(latest, debt, lows)
  local state = { latest, debt }
  for _, low in ipairs(lows) do
    state[#state + 1] = latest - low[1]
    state[#state + 1] = low[2]
  end
  return state
end

-- Bucket: raise the debt, after noting how low it was.
local function raise_debt(limit, latest, debt, target)
  local state = limit.state
  target = min(target, LARGEST)
  if debt == 0 then -- no low is lower
    limit.state = { latest, target, 0, 0 }
    return
  elseif state[1] == latest and state[#state - 1] == 0 and state[#state] < debt then -- it was noted in this tick
    state[2] = target
    return
  end
  local lows = {}
  for _, low in ipairs(lows_of(limit.state)) do
    if low[2] < debt then lows[#lows + 1] = low end
  end
  if #lows == 0 or lows[#lows][1] < latest then lows[#lows + 1] = { latest, debt } end
  if #lows > FLOORS then
    local at
    for i = 1, #lows - 1 do
      if not at or lows[i + 1][2] - lows[i][2] < lows[at + 1][2] - lows[at][2] then at = i end
    end
    lows[at] = { lows[at + 1][1], lows[at][2] }
    table.remove(lows, at + 1)
  end
  limit.state = with_lows(latest, target, lows)
end

-- Fixed: the begin of the window that counts, and what was charged in it.
local function window_of(limit)
  local begin = now - now % limit.per
  if limit.state[1] and limit.state[1] >= begin then return limit.state[1], limit.state[2] end
  return begin, 0
end

-- Sliding: the time from which a bucket counts no more.
local function gone(limit, bucket) return (bucket + 1) * limit.width - 1 + limit.per end

-- Sliding: the time that counts, the newest bucket, what was charged in each that counts, their sum, and the oldest.
local function buckets_of(limit)
  local state, counted, sum = limit.state, {}, 0
  local latest = now
  if state[1] then latest = max(now, state[1] * limit.width) end
  local newest, oldest = floor(latest / limit.width), nil
  for at = 2, #state do
    local bucket = state[1] - (at - 2)
    if gone(limit, bucket) > latest then
      counted[bucket] = state[at]
      sum = sum + state[at]
      oldest = bucket
    end
  end
  return latest, newest, counted, sum, oldest
end

local function add_to_bucket(limit, newest, counted, oldest, bucket, cost)
  counted[bucket] = max(0, min((counted[bucket] or 0) + cost, LARGEST))
  local state = { newest }
  for each = newest, min(oldest or bucket, bucket), -1 do state[#state + 1] = counted[each] or 0 end
  while #state > 2 and state[#state] == 0 do state[#state] = nil end
  limit.state = state
end

-- Concurrency: how many places are taken.
local function taken(limit) return redis.call('ZCOUNT', limit.slots, '(' .. number(now), '+inf') end

local function remaining_of(limit)
  if limit.kind == 'b' then
    local _, debt = debt_of(limit)
    return floor(max(0, limit.capacity * limit.per - debt) / limit.per)
  elseif limit.kind == 'f' then
    local _, used = window_of(limit)
    return max(0, limit.capacity - used)
  elseif limit.kind == 's' then
    local _, _, _, sum = buckets_of(limit)
    return max(0, limit.capacity - sum)
  end
  return max(0, limit.capacity - taken(limit))
end

-- The time from which a limit is as good as fresh; 0 for a fresh one.
local function ends_of(limit)
  local state = limit.state
  if limit.kind == 'c' then
    return tonumber(redis.call('ZREVRANGE', limit.slots, 0, 0, 'WITHSCORES')[2] or 0)
  elseif not state[1] then
    return 0
  elseif limit.kind == 'b' then
    return state[1] + ceil(state[2] / limit.rate)
  elseif limit.kind == 'f' then
    return state[2] > 0 and state[1] + limit.per or 0
  end
  for at = 2, #state do
    if state[at] > 0 then return gone(limit, state[1] - (at - 2)) end
  end
  return 0
end

-- After how many ms a cost passes: 0 for now, nil for never.
local function wait_of(limit, cost)
  if cost > limit.capacity then return nil end
  if cost == 0 then return 0 end
  if limit.kind == 'b' then
    local latest, debt = debt_of(limit)
    local over = debt - limit.capacity * limit.per + cost * limit.per
    return over > 0 and latest - now + ceil(over / limit.rate) or 0
  elseif limit.kind == 'f' then
    local begin, used = window_of(limit)
    return used > limit.capacity - cost and begin + limit.per - now or 0
  elseif limit.kind == 's' then
    local _, _, counted, sum, oldest = buckets_of(limit)
    local over = sum - limit.capacity + cost
    if over <= 0 then return 0 end
    while true do
      over = over - (counted[oldest] or 0)
      if over <= 0 then return gone(limit, oldest) - now end
      oldest = oldest + 1
    end
  end
  local over = taken(limit) + cost - limit.capacity
  if over <= 0 then return 0 end
  return redis.call('ZRANGEBYSCORE', limit.slots, '(' .. number(now), '+inf', 'WITHSCORES', 'LIMIT', over - 1, 1)[2] - now
end

local function drop_slots(limit, token)
  local slot = 1
  while redis.call('ZREM', limit.slots, token .. ' ' .. slot) == 1 do slot = slot + 1 end
end

-- Charge a cost, whether it fits or not; what it is remembered by.
local function charge(limit, cost, token)
  if limit.kind == 'b' then
    local latest, debt = debt_of(limit)
    raise_debt(limit, latest, debt, debt + cost * limit.per)
    return limit.state[1], limit.state[2]
  elseif limit.kind == 'f' then
    local begin, used = window_of(limit)
    limit.state = { begin, min(used + cost, LARGEST) }
    return begin, 0
  elseif limit.kind == 's' then
    local _, newest, counted, _, oldest = buckets_of(limit)
    add_to_bucket(limit, newest, counted, oldest, newest, cost)
    return newest, 0
  end
  redis.call('ZREMRANGEBYSCORE', limit.slots, '-inf', number(now))
  for slot = 1, cost do redis.call('ZADD', limit.slots, number(now + limit.ttl), token .. ' ' .. slot) end
  redis.call('PEXPIRE', limit.slots, number(redis.call('ZREVRANGE', limit.slots, 0, 0, 'WITHSCORES')[2] - now))
  return 0, 0
end

-- Keep the states of the limits that have changed, beside those of others.
local function store(limits)
  local ends = 0
  for _, limit in ipairs(limits) do
    if limit.changed and limit.state then
      local kept = limit.state
      ends = max(ends, ends_of(limit))
      for at, each in ipairs(kept) do
        if each > EXACT then kept[at] = number(each) end
      end
      local first, colon = string.find(stored, limit.id .. ':', 1, true)
      if first then
        stored = string.sub(stored, 1, first - 1) .. string.sub(stored, string.find(stored, ';', colon, true) + 1)
      end
      if #kept > 0 then stored = stored .. limit.id .. ':' .. table.concat(kept, ',') .. ';' end
    end
  end
  local left = max(1, ends - now + MARGIN, redis.call('PTTL', KEYS[1]))
  if stored ~= '' then redis.call('SET', KEYS[1], stored, 'PX', number(left)) end
end
