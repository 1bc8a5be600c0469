-- The wake-up stream of a group (see group.lua); loaded before the scripts that notify consumers (see scripts.py).
--
-- returns nothing by itself
-- writes  the wake-up stream, with a TTL of 10 s

-- Replace the entry of the wake-up stream, so that the consumers that wait fetch again.
local function ring(bell)
  if type(redis.pcall('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)) ~= 'string' then -- there is an entry of the largest id
    redis.call('DEL', bell)
    redis.call('XADD', bell, '*', 'r', 1)
  end
  redis.call('PEXPIRE', bell, 10000)
end
