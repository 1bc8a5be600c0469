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
--   kind, capacity; rate, per (b: bucket); per (f: fixed); width, per (s: sliding); ttl, slots (c: concurrency);
--   all but c: id, entry (what is stored of it), state, changed (whether that is to be stored);
--   b: latest, debt (the state leaked until now: who changes the state alone must not ask for a wait any more)

local LARGEST = 9007199254740992
local FLOORS = 4
local EXACT = 99999999999999 -- what Lua itself writes in full
local MARGIN = 1000
local EACH = 5
local max, min, floor, ceil = math.max, math.min, math.floor, math.ceil
local find, match, sub, format = string.find, string.match, string.sub, string.format
local line = { queue = KEYS[2], waiters = KEYS[3] }
local stored = redis.call('GET', KEYS[1]) or ''
local foreign = #stored -- how much of it is of other limits than those at hand
local loaded = {} -- those at hand that have a state
local slots = 3 -- the last key that is taken

-- A limit with its state: for a bucket the time, the debt then, and the text of its lows; else the numbers.
local function limit_at(first)
  local kind, id = ARGV[first], ARGV[first + 1]
  local one, two, three = ARGV[first + 2] + 0, ARGV[first + 3] + 0, ARGV[first + 4] + 0
  if kind == 'c' then
    slots = slots + 1
    return { kind = kind, ttl = one, capacity = two, slots = KEYS[slots] }
  end
  local from, colon = find(stored, id .. ':', 1, true)
  local entry = from and sub(stored, from, find(stored, ';', colon, true))
  local limit, state
  if kind == 'b' then
    limit = { kind = kind, id = id, rate = one, per = two, capacity = three, entry = entry, latest = now, debt = 0 }
    if entry then
      local latest, debt, lows = match(entry, '(%d+),(%d+)([%d,]*);', #id + 2)
      latest, debt = latest + 0, debt + 0
      state = { latest, debt, lows }
      limit.latest = max(now, latest)
      limit.debt = max(0, debt - one * (limit.latest - latest))
    end
  else
    if kind == 'f' then
      limit = { kind = kind, id = id, per = one, capacity = two, entry = entry }
    else
      limit = { kind = kind, id = id, width = one, per = two, capacity = three, entry = entry }
    end
    if entry then
      state = {}
      for digits in string.gmatch(sub(entry, #id + 2), '%d+') do state[#state + 1] = digits + 0 end
    end
  end
  if entry then foreign = foreign - #entry end
  limit.state = state or {}
  loaded[#loaded + 1] = limit
  return limit
end

-- Bucket: the lows of the debt, with their times.
local function lows_of(state)
  local lows = {}
  for age, low in string.gmatch(state[3] or '', ',(%d+),(%d+)') do lows[#lows + 1] = { state[1] - age, low + 0 } end
  return lows
end

local function with_lows(latest, debt, lows)
  local text = ''
  for _, low in ipairs(lows) do text = format('%s,%.0f,%.0f', text, latest - low[1], low[2]) end
  return { latest, debt, text }
end

-- Bucket: raise the debt, after noting how low it was.
local function raise_debt(limit, target)
  local state, latest, debt = limit.state, limit.latest, limit.debt
  target = min(target, LARGEST)
  limit.debt = target
  if debt == 0 then -- no low is lower
    limit.state = { latest, target, ',0,0' }
    return
  elseif state[1] == latest then
    local noted = match(state[3], ',0,(%d+)$')
    if noted and noted + 0 < debt then -- it was noted in this tick
      state[2] = target
      return
    end
  end
  local lows = {}
  for _, low in ipairs(lows_of(state)) do
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
    return floor(max(0, limit.capacity * limit.per - limit.debt) / limit.per)
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
    local over = limit.debt - limit.capacity * limit.per + cost * limit.per
    return over > 0 and limit.latest - now + ceil(over / limit.rate) or 0
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
    raise_debt(limit, limit.debt + cost * limit.per)
    return limit.latest, limit.debt
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

-- What is stored of a limit.
local function entry_of(limit)
  local state = limit.state
  if limit.kind == 'b' then return format('%s:%.0f,%.0f%s;', limit.id, state[1], state[2], state[3]) end
  for at, each in ipairs(state) do
    if each > EXACT then state[at] = number(each) end
  end
  return limit.id .. ':' .. table.concat(state, ',') .. ';'
end

-- Keep the states of the limits at hand, beside those of others, with the longest time that one of them is needed for.
local function store()
  local kept, ends = '', 0
  for _, limit in ipairs(loaded) do
    if foreign > 0 and limit.entry then
      local from, to = find(stored, limit.entry, 1, true)
      stored = sub(stored, 1, from - 1) .. sub(stored, to + 1)
    end
    ends = max(ends, ends_of(limit))
    kept = kept .. (limit.changed and entry_of(limit) or limit.entry or '')
  end
  if foreign > 0 then kept = stored .. kept end
  local left = max(1, ends - now + MARGIN, redis.call('PTTL', KEYS[1])) -- others may know of it for longer
  if kept ~= '' then redis.call('SET', KEYS[1], kept, 'PX', left) end
end
