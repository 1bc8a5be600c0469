-- Delete all charges in branches of a limiter, and wake the first waiter of each.
--
-- KEYS    of each branch: states, queue, waiters, slots: see limit.lua
-- ARGV    of each branch its number of keys
-- returns 1
-- bound   the limits of a request

local used = 0
for _, count in ipairs(ARGV) do
  redis.call('DEL', KEYS[used + 1], unpack(KEYS, used + 4, used + count))
  local wait_queue = queue_if_any(KEYS[used + 2], KEYS[used + 3])
  if wait_queue then wait_queue:wake() end
  used = used + count
end
return 1
