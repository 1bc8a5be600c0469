-- Forget everything that was charged, and wake the first in line.
--
-- returns 1

redis.call('DEL', KEYS[1], unpack(KEYS, 4))
local line = crowd(QUEUE, WAITERS)
if line then line:wake() end
return 1
