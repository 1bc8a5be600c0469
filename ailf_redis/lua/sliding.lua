-- The sliding window, as ailf/algorithms.py has it; it stands after limit.lua.
--
-- returns nothing by itself
-- writes  nothing
--
-- state: the number of the newest bucket, what was charged in it, in the one before, …; empty for a fresh one

makers.s = function()
  local EXACT = 99999999999999 -- what Lua itself writes in full

  local function load(id, entry, width, per, capacity)
    local state = {}
    if entry then
      for digits in string.gmatch(string.sub(entry, #id + 2), '%d+') do state[#state + 1] = digits + 0 end
    end
    return { id = id, width = width, per = per, capacity = capacity, entry = entry, state = state }
  end

  -- The time from which a bucket counts no more.
  local function gone(sliding, bucket) return (bucket + 1) * sliding.width - 1 + sliding.per end

  -- The time that counts, the newest bucket, what was charged in each that counts, their sum, and the oldest.
  local function buckets(sliding)
    local state, counted, sum = sliding.state, {}, 0
    local latest = now
    if state[1] then latest = max(now, state[1] * sliding.width) end
    local newest, oldest = floor(latest / sliding.width), nil
    for at = 2, #state do
      local bucket = state[1] - (at - 2)
      if gone(sliding, bucket) > latest then
        counted[bucket] = state[at]
        sum = sum + state[at]
        oldest = bucket
      end
    end
    return latest, newest, counted, sum, oldest
  end

  local function add(sliding, newest, counted, oldest, bucket, cost)
    counted[bucket] = max(0, min((counted[bucket] or 0) + cost, LARGEST))
    local state = { newest }
    for each = newest, min(oldest or bucket, bucket), -1 do state[#state + 1] = counted[each] or 0 end
    while #state > 2 and state[#state] == 0 do state[#state] = nil end
    sliding.state = state
  end

  local function wait(sliding, cost)
    if cost > sliding.capacity then return nil end
    local _, _, counted, sum, oldest = buckets(sliding)
    local over = sum - sliding.capacity + cost
    if cost == 0 or over <= 0 then return 0 end
    while true do
      over = over - (counted[oldest] or 0)
      if over <= 0 then return gone(sliding, oldest) - now end
      oldest = oldest + 1
    end
  end

  local function charge(sliding, cost)
    local _, newest, counted, _, oldest = buckets(sliding)
    add(sliding, newest, counted, oldest, newest, cost)
    return newest, 0
  end

  local function remaining(sliding)
    local _, _, _, sum = buckets(sliding)
    return max(0, sliding.capacity - sum)
  end

  local function ends(sliding)
    local state = sliding.state
    for at = 2, #state do
      if state[at] > 0 then return gone(sliding, state[1] - (at - 2)) end
    end
    return 0
  end

  local function settle(sliding, cost, actual, one)
    local latest, newest, counted, _, oldest = buckets(sliding)
    if gone(sliding, one) <= latest or not sliding.state[1] and actual <= cost then return false end
    add(sliding, max(newest, one), counted, oldest, one, actual - cost)
    return true
  end

  local function observe(sliding, known, _, pause)
    local _, newest, counted, sum, oldest = buckets(sliding)
    local left = sliding.capacity
    if pause > 0 then left = 0 elseif known >= 0 then left = known end
    local over = max(0, sliding.capacity - sum) - left
    if over <= 0 then return false end
    add(sliding, newest, counted, oldest, newest, over)
    return true
  end

  local function text(sliding)
    local state = sliding.state
    for at, each in ipairs(state) do
      if each > EXACT then state[at] = number(each) end
    end
    return table.concat(state, ',')
  end

  return { load = load, wait = wait, charge = charge, remaining = remaining, ends = ends, settle = settle,
    observe = observe, text = text }
end
