-- The concurrency limit, as ailf/limits has it; loaded after limit.lua.
--
-- KEYS    slots, for each concurrency limit (see limit.lua): sorted set: "<token> <number>" -> ms when the slot ends;
--         one that ends after LARGEST isn't ours and doesn't count
-- returns nothing by itself
-- writes  the slots with the end of the last one as TTL
-- bound   the slots of one call, which are no more than the limit allows

makers.c = function()
  local after, latest = '(' .. number(now), number(LARGEST)

  local function load(_, _, ttl, capacity) return { ttl = ttl, capacity = capacity, key = next_slots() } end

  local function drop(slots, token)
    local slot = 1
    -- Without the ZSCORE a ZREM of nothing would be a first write, after which a full server accepts more data.
    while redis.call('ZSCORE', slots.key, token .. ' ' .. slot) do
      redis.call('ZREM', slots.key, token .. ' ' .. slot)
      slot = slot + 1
    end
  end

  local function taken(slots) return redis.call('ZCOUNT', slots.key, after, latest) end

  local function wait(slots, cost)
    if cost > slots.capacity then return nil end
    local over = taken(slots) + cost - slots.capacity
    if cost == 0 or over <= 0 then return 0 end
    local ends = redis.call('ZRANGEBYSCORE', slots.key, after, latest, 'WITHSCORES', 'LIMIT', over - 1, 1)
    return ceil(ends[2] - now)
  end

  local function ends(slots)
    return tonumber(redis.call('ZREVRANGEBYSCORE', slots.key, latest, after, 'WITHSCORES', 'LIMIT', 0, 1)[2] or 0)
  end

  local function charge(slots, cost, token)
    for slot = 1, cost do redis.call('ZADD', slots.key, number(now + slots.ttl), token .. ' ' .. slot) end
    redis.call('ZREMRANGEBYSCORE', slots.key, '-inf', number(now))
    redis.call('PEXPIRE', slots.key, number(ends(slots) - now))
    return 0, 0
  end

  local function remaining(slots) return max(0, slots.capacity - taken(slots)) end

  -- All or nothing: a call keeps its slots, or frees them.
  local function settle(slots, _, actual, _, _, token)
    if actual == 0 then drop(slots, token) end
    return false
  end

  local function observe() return false end

  return { load = load, drop = drop, wait = wait, charge = charge, remaining = remaining, ends = ends, settle = settle,
    observe = observe }
end
