-- Grant one or several locks to a token, all or none; or put it in line.
--
-- ARGV    token, ttl_ms, permits, fair (1 or 0), channel where it waits ('' for not waiting), waiter's lease in ms
-- returns { 1, fence } or { 0, ms after which another try may do better }
-- bound   the names that are asked for; see lock.lua and wait_queue.lua

local token, ttl, permits, fair = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local channel, lease = ARGV[5], tonumber(ARGV[6])
local locks = all_locks()
local held = 0
local retry -- the first time at which something changes by itself

local function blocked(ends)
  if not retry or ends < retry then retry = ends end
end

-- When the first grant of somebody else ends.
local function others_end(lock)
  local first = redis.call('ZRANGE', lock.holders, 0, 1, 'WITHSCORES')
  local ends = tonumber(first[1] == token and first[4] or first[2])
  return ends <= LARGEST and ends or now + 1 -- one of those that expire_foreign has left for the next look
end

-- Somebody else who is first in line may be waited for until he counts as dead.
local function yield_to_first(line)
  if not line then return end
  local first, alive = line:head()
  if first and first ~= token then blocked(alive) end
end

for _, lock in ipairs(locks) do
  lock.taken = redis.call('ZCARD', lock.holders)
  if lock.taken > 0 then -- most are free
    lock.taken = lock.taken - expire(lock) - expire_foreign(lock)
    lock.mine = ends_of(lock, token)
    if lock.mine then held = held + 1 end
  end
end

if held == #locks then -- the same bid again: the same grant, unless somebody has taken its fence away
  local fence = redis.call('HGET', locks[1].fences, token)
  if fence_in(fence) then
    for _, lock in ipairs(locks) do grant(lock, token, now + ttl) end
    return { 1, fence }
  end
end

for _, lock in ipairs(locks) do
  local others = lock.taken - (lock.mine and 1 or 0)
  lock.room = permits - others
  if lock.room <= 0 then
    blocked(others_end(lock))
  elseif fair and held < #locks then
    yield_to_first(crowd(lock.queue, lock.waiters))
  end
end

if not retry then
  local fence = now_us
  for _, lock in ipairs(locks) do
    local last = fence_in(redis.call('GET', lock.fence)) or 0
    if last < LARGEST - 1 then fence = math.max(fence, last + 1) end -- nothing can follow the largest one
  end
  for _, lock in ipairs(locks) do
    redis.call('SET', lock.fence, number(fence), 'PX', IDLE)
    redis.call('HSET', lock.fences, token, number(fence))
    grant(lock, token, now + ttl, lock.taken == 0)
    local line = crowd(lock.queue, lock.waiters)
    if line then
      line:leave(token)
      if lock.room > 1 then -- there is room for the next one
        line:wake()
      else -- the first one knows now when that is
        line:wake(nil, tonumber(redis.call('ZRANGE', lock.holders, 0, 0, 'WITHSCORES')[2]))
      end
    end
  end
  return { 1, number(fence) }
end

if channel ~= '' then
  local kept = true
  for _, lock in ipairs(locks) do
    lock.line = line_of(lock.queue, lock.waiters)
    kept = lock.line:waiter(token) and kept
  end
  for _, lock in ipairs(locks) do
    -- Who lost his place in one line has lost it in all: or two could be first in one each, and wait for each other.
    if not kept then lock.line:leave(token) end
    if deaf(channel) then yield_to_first(lock.line) end -- who frees it can't know that the first in line has died
    lock.line:stand(token, lease, retry, channel)
    local free = lock.room > (lock.mine and 1 or 0)
    if free and not fair then lock.line:wake(token) end -- but not for us: somebody else may want only this
  end
end
return { 0, math.max(1, retry - now) }
