-- What the transitions of locks share; it stands before the text of each of them (see scripts.py).
--
-- Five keys for each name, one after another:
-- KEYS[1] holders   sorted set: token -> ms when its grant ends
-- KEYS[2] fences    hash: token -> fence
-- KEYS[3] fence     text: the last fence that was granted
-- KEYS[4] queue, KEYS[5] waiters   see wait_queue.lua
-- returns nothing by itself
-- writes  KEYS[1..2] with the end of the last grant as TTL, KEYS[3] with a day
-- A grant that ends after LARGEST isn't ours and counts as ended; a fence that can't be ours counts as none.
-- bound   the names that are asked for; of each, MOST grants that have ended, and MOST that aren't ours

local EACH = 5
local IDLE = 86400000
local function lock_at(first)
  return { holders = KEYS[first], fences = KEYS[first + 1], fence = KEYS[first + 2], queue = KEYS[first + 3],
    waiters = KEYS[first + 4] }
end

local function all_locks()
  local found = {}
  for first = 1, #KEYS, EACH do found[#found + 1] = lock_at(first) end
  return found
end

-- Let grants that end from then to then be gone, at most MOST; how many that were.
local function forget(lock, from, to)
  local ended = redis.call('ZRANGEBYSCORE', lock.holders, from, to, 'LIMIT', 0, MOST)
  for _, token in ipairs(ended) do
    redis.call('ZREM', lock.holders, token)
    redis.call('HDEL', lock.fences, token)
  end
  return #ended
end

-- Let what has ended be gone, at most MOST grants; how many that were. Others count as held until the next look.
local function expire(lock) return forget(lock, '-inf', number(now)) end

-- The same of what another program stored, which would never end.
local function expire_foreign(lock) return forget(lock, '(' .. number(LARGEST), '+inf') end

local function ends_of(lock, token)
  local ends = tonumber(redis.call('ZSCORE', lock.holders, token) or 0)
  return ends > now and ends <= LARGEST and ends or nil
end

-- A fence of a text that is stored, where it can be ours.
local function fence_in(text)
  local fence = text and string.match(text, '^%d+$') and tonumber(text)
  return fence and fence < LARGEST and fence or nil
end

-- Let a token's grant end then, and the keys with the last of them, which it is itself where nobody else has one.
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

-- End a token's grant and give up its place in line; wake the next one where either was in its way. 1 where it had one.
local function end_grant(lock, token)
  expire(lock)
  local ended = redis.call('ZREM', lock.holders, token)
  redis.call('HDEL', lock.fences, token)
  local line = crowd(lock.queue, lock.waiters)
  local first = line and line:head()
  if first then
    line:leave(token)
    if ended == 1 or first == token then line:wake() end
  end
  return ended
end
