-- Grant one or several locks to a token, all or none; or add the token to their wait queues.
--
-- ARGV    token, ttl_ms, permits, fair (1 or 0), channel to wake the waiter on ('' to not wait), waiter's lease in ms
-- returns { 1, fence }, or { 0, ms until another request may succeed }
-- bound   the requested names; see lock.lua and wait_queue.lua

local token, ttl, permits, fair = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local channel, lease = ARGV[5], tonumber(ARGV[6])
local locks = all_locks()
local held = 0
local retry -- the first time at which something changes by itself

local function blocked_until(ends)
  if not retry or ends < retry then retry = ends end
end

-- Return when the first grant of another token ends.
local function others_end(lock)
  local first = redis.call('ZRANGE', lock.holders, 0, 1, 'WITHSCORES')
  local ends = tonumber(first[1] == token and first[4] or first[2])
  return ends <= LARGEST and ends or now + 1 -- one of those that expire_foreign has left for the next call
end

-- Another token that is first in the queue goes first: if `always`, until it counts as dead, else while the lock is
-- reserved for it. Return whether it goes first.
local function yield_to_first(wait_queue, always)
  local first, alive, _, reserved = wait_queue:first_alive()
  local ends = first and first ~= token and (always and alive or reserved)
  if ends then blocked_until(ends) end
  return ends
end

for _, lock in ipairs(locks) do
  lock.taken = redis.call('ZCARD', lock.holders)
  if lock.taken > 0 then -- most are free
    lock.taken = lock.taken - expire(lock) - expire_foreign(lock)
    lock.own = ends_of(lock, token)
    if lock.own then held = held + 1 end
  end
end

if held == #locks then -- the request is a repetition: the grant is the same, unless another program removed its fence
  local fence = redis.call('HGET', locks[1].fences, token)
  if read_fence(fence) then
    for _, lock in ipairs(locks) do grant(lock, token, now + ttl) end
    return { 1, fence }
  end
end

for _, lock in ipairs(locks) do
  local others = lock.taken - (lock.own and 1 or 0)
  lock.free = permits - others
  if lock.free <= 0 then
    blocked_until(others_end(lock))
  else
    lock.wait_queue = queue_if_any(lock.queue, lock.waiters)
    if lock.wait_queue and held < #locks then lock.yields = yield_to_first(lock.wait_queue, fair) end
  end
end

if not retry then
  local fence = now_us
  for _, lock in ipairs(locks) do
    local last = read_fence(redis.call('GET', lock.fence)) or 0
    if last < LARGEST - 1 then fence = math.max(fence, last + 1) end -- nothing can follow the largest one
  end
  for _, lock in ipairs(locks) do
    redis.call('SET', lock.fence, number(fence), 'PX', IDLE)
    redis.call('HSET', lock.fences, token, number(fence))
    grant(lock, token, now + ttl, lock.taken == 0)
    local wait_queue = lock.wait_queue
    if wait_queue then
      wait_queue:leave(token)
      if lock.free > 1 then -- a permit is left for the next waiter
        wait_queue:wake()
      else -- the first waiter learns when the first grant ends
        wait_queue:wake_if_earlier(tonumber(redis.call('ZRANGE', lock.holders, 0, 0, 'WITHSCORES')[2]))
      end
    end
  end
  return { 1, number(fence) }
end

if channel ~= '' then
  local waits_in_all = true
  for _, lock in ipairs(locks) do
    lock.wait_queue = queue_at(lock.queue, lock.waiters)
    waits_in_all = lock.wait_queue:waiter(token) and waits_in_all
  end
  for _, lock in ipairs(locks) do
    -- A token that lost its position in one queue loses it in all: else two tokens could each be first in one, and wait
    -- for each other.
    if not waits_in_all then lock.wait_queue:leave(token) end
    -- In a cluster a release can't see that the first waiter has died.
    if is_cluster_channel(channel) then yield_to_first(lock.wait_queue, true) end
    lock.wait_queue:enqueue(token, lease, retry, channel, #locks == 1)
    local free = lock.free > (lock.own and 1 or 0)
    if free and not fair and not lock.yields then -- the next waiter may want only this lock
      lock.wait_queue:wake(token)
    end
  end
end
return { 0, math.max(1, retry - now) }
