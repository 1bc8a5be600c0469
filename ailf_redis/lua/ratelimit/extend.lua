-- Extend the concurrency slots of calls to their whole TTL.
--
-- KEYS[1] slots   the first of them; the others follow, one for each ttl, call after call: see concurrency.lua
-- ARGV    for each call: token, its number of keys, and for each key its ttl in ms
-- returns for each call 1, or 0 if one of its slots has ended
-- writes  each key with the end of its last slot as TTL
-- bound   the slots of the calls

redis.call('ZREM', KEYS[1], '') -- a first write that changes nothing: see relief.lua
local reply, key, at = {}, 0, 1
while ARGV[at] do
  local token, count = ARGV[at], tonumber(ARGV[at + 1])
  local held = 1
  for n = 1, count do
    local ends = tonumber(redis.call('ZSCORE', KEYS[key + n], token .. ' 1') or 0)
    if ends <= now or ends > LARGEST then held = 0 end
  end
  for n = 1, held == 1 and count or 0 do
    local slots, ttl = KEYS[key + n], tonumber(ARGV[at + 1 + n])
    local slot = 1
    while redis.call('ZSCORE', slots, token .. ' ' .. slot) do
      redis.call('ZADD', slots, number(now + ttl), token .. ' ' .. slot)
      slot = slot + 1
    end
    local last = redis.call('ZREVRANGEBYSCORE', slots, number(LARGEST), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    redis.call('PEXPIRE', slots, number(last[2] - now))
  end
  reply[#reply + 1] = held
  key, at = key + count, at + 2 + count
end
return reply
