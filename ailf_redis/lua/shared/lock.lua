-- What the transitions of locks share; loaded before each of them (see scripts.py).
--
-- Five keys for each name, one after another:
-- KEYS[1] holders   sorted set: token -> ms when its grant ends
-- KEYS[2] fences    hash: token -> fence
-- KEYS[3] fence     text: the last fence that was granted
-- KEYS[4] queue, KEYS[5] waiters   see wait_queue.lua
-- returns nothing by itself
-- writes  KEYS[1..2] with the end of the last grant as TTL, KEYS[3] with a day
-- A grant that ends after LARGEST isn't ours and counts as ended; a fence that can't be ours counts as none.
-- bound   the requested names; of each, MOST grants that have ended, and MOST that aren't ours

local EACH = 5
local IDLE = 86400000
local function lock_at(first)
  return { holders = KEYS[first], fences = KEYS[first + 1], fence = KEYS[first + 2], queue = KEYS[first + 3],
    waiters = KEYS[first + 4] }
end

local function all_locks()
  local locks = {}
  for first = 1, #KEYS, EACH do locks[#locks + 1] = lock_at(first) end
  return locks
end

-- Remove at most MOST grants that end between two times; return how many.
local function remove_grants(lock, from, to)
  local ended = redis.call('ZRANGEBYSCORE', lock.holders, from, to, 'LIMIT', 0, MOST)
  for _, token in ipairs(ended) do
    redis.call('ZREM', lock.holders, token)
    redis.call('HDEL', lock.fences, token)
  end
  return #ended
end

-- Remove at most MOST grants that have ended; return how many. Any others count as held until the next call.
local function expire(lock) return remove_grants(lock, '-inf', number(now)) end

-- Remove grants that another program stored and that would never end, in the same way.
local function expire_foreign(lock) return remove_grants(lock, '(' .. number(LARGEST), '+inf') end

-- Return when a token's grant ends; nil if it has none.
local function ends_of(lock, token)
  local ends = tonumber(redis.call('ZSCORE', lock.holders, token) or 0)
  return ends > now and ends <= LARGEST and ends or nil
end

-- Read a stored fence; nil if it can't be ours.
local function read_fence(text)
  local fence = text and string.match(text, '^%d+$') and tonumber(text)
  return fence and fence < LARGEST and fence or nil
end

-- Let a token's grant end at `ends`, and the keys with the last grant; `alone` means that there is no other.
local function grant(lock, token, ends, alone)
  redis.call('ZADD', lock.holders, number(ends), token)
  local last = ends
  if not alone then
    last = redis.call('ZREVRANGEBYSCORE', lock.holders, number(LARGEST), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  end
  local ttl = number(math.max(1, last - now))
  redis.call('PEXPIRE', lock.holders, ttl)
  redis.call('PEXPIRE', lock.fences, ttl)
end

-- End a token's grant and take the token out of the wait queue; wake the first waiter if either was in its way. Return
-- 1 if the token had a grant, else 0.
local function end_grant(lock, token)
  expire(lock)
  local ended = redis.call('ZREM', lock.holders, token)
  redis.call('HDEL', lock.fences, token)
  local wait_queue = queue_if_any(lock.queue, lock.waiters)
  local first = wait_queue and wait_queue:first_alive()
  if first then
    wait_queue:leave(token)
    if ended == 1 or first == token then wait_queue:wake() end
  end
  return ended
end
