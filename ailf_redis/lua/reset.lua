-- Forget everything that was charged, and wake the first in line.
--
-- returns 1

redis.call('DEL', KEYS[1], unpack(KEYS, 4))
wake(line)
return 1
