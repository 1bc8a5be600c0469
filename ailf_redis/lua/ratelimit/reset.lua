-- Delete all charges of a limiter's key, and wake the first waiter.
--
-- returns 1

redis.call('DEL', KEYS[1], unpack(KEYS, 4))
local wait_queue = queue_if_any(QUEUE, WAITERS)
if wait_queue then wait_queue:wake() end
return 1
