-- The sliding window, as ailf/limits has it; loaded after limit.lua.
--
-- returns nothing by itself
-- writes  nothing
-- bound   each loop passes once through the buckets of a state: those of `per`, and one more
--
-- state: the time of the last charge, the charges in its bucket, in the one before, …; empty at full capacity

makers.s = function()
  local EXACT = 99999999999999 -- the largest integer that Lua itself writes in full

  -- Read a stored state of at most `most` numbers, with a ";" after the last; nil if it can't be ours.
  local function read(entry, from, most)
    local state = {}
    for at = 1, most do
      local _, to, digits, sign = string.find(entry, '^(%d+)([,;])', from)
      local value = tonumber(digits)
      if not value or value > LARGEST then return nil end
      state[at] = value
      if sign == ';' then return at > 1 and state or nil end
      from = to + 1
    end
  end

  local function load(id, entry, width, per, capacity)
    local state = entry and read(entry, #id + 2, floor(per / width) + 4) or {}
    return { id = id, width = width, per = per, capacity = capacity, entry = entry, state = state }
  end

  -- Return the time when a bucket stops counting; `last` is the time of the last charge of all.
  local function expires(sliding, last, bucket)
    return min(last, (bucket + 1) * sliding.width - 1) + sliding.per
  end

  -- Return the time that counts, the charges of each bucket that does, their sum, and the oldest bucket.
  local function buckets(sliding)
    local state, counted, sum, oldest = sliding.state, {}, 0, nil
    if not state[1] then return now, counted, sum, oldest end
    local last = state[1]
    local latest, newest = max(now, last), floor(last / sliding.width)
    for at = 2, #state do
      local bucket = newest - (at - 2)
      if expires(sliding, last, bucket) > latest then
        counted[bucket] = state[at]
        sum = sum + state[at]
        oldest = bucket
      end
    end
    return latest, counted, sum, oldest
  end

  local function add(sliding, last, counted, oldest, bucket, cost)
    counted[bucket] = max(0, min((counted[bucket] or 0) + cost, LARGEST))
    local state, first = { last }, floor((last + 1 - sliding.per) / sliding.width) -- those before have expired
    first = max(first, min(oldest or bucket, bucket))
    for at = floor(last / sliding.width), first, -1 do state[#state + 1] = counted[at] or 0 end
    while #state > 2 and state[#state] == 0 do state[#state] = nil end
    sliding.state = state
  end

  local function wait(sliding, cost)
    if cost > sliding.capacity then return nil end
    local _, counted, sum, oldest = buckets(sliding)
    local over = sum - sliding.capacity + cost
    if cost == 0 or over <= 0 then return 0 end
    local last = sliding.state[1]
    local newest = floor(last / sliding.width)
    for bucket = oldest, newest - 1 do
      over = over - (counted[bucket] or 0)
      if over <= 0 then return expires(sliding, last, bucket) - now end
    end
    return expires(sliding, last, newest) - now -- all has expired then; a sum beyond LARGEST may be rounded
  end

  local function charge(sliding, cost)
    local latest, counted, _, oldest = buckets(sliding)
    local bucket = floor(latest / sliding.width)
    add(sliding, latest, counted, oldest, bucket, cost)
    return bucket, 0
  end

  local function remaining(sliding)
    local _, _, sum = buckets(sliding)
    return max(0, sliding.capacity - sum)
  end

  local function ends(sliding)
    local state = sliding.state
    for at = 2, #state do
      if state[at] > 0 then return expires(sliding, state[1], floor(state[1] / sliding.width) - (at - 2)) end
    end
    return 0
  end

  local function settle(sliding, cost, actual, one)
    local latest, counted, _, oldest = buckets(sliding)
    local last = sliding.state[1]
    if not last or floor(last / sliding.width) < one then last = (one + 1) * sliding.width - 1 end
    if expires(sliding, last, one) <= latest or not sliding.state[1] and actual <= cost then return false end
    add(sliding, last, counted, oldest, one, actual - cost)
    return true
  end

  local function observe(sliding, reported, _, pause)
    local latest, counted, sum, oldest = buckets(sliding)
    local left = sliding.capacity
    if pause > 0 then left = 0 elseif reported >= 0 then left = reported end
    local over = max(0, sliding.capacity - sum) - left
    if over <= 0 then return false end
    add(sliding, latest, counted, oldest, floor(latest / sliding.width), over)
    return true
  end

  local function text(sliding)
    local state = sliding.state
    for at, value in ipairs(state) do
      if value > EXACT then state[at] = number(value) end
    end
    return table.concat(state, ',')
  end

  return { load = load, wait = wait, charge = charge, remaining = remaining, ends = ends, settle = settle,
    observe = observe, text = text }
end
