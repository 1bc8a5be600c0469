-- Let the places of calls last for their whole time again.
--
-- KEYS[1] slots   the first of them; the others follow, one for each ttl, call after call: see concurrency.lua
-- ARGV    for each call: token, how many keys, and so many ttls in ms
-- returns for each call 1, or 0 where one of its places has ended
-- writes  each key with the end of its last place as TTL
-- bound   the places that the calls have

redis.call('ZREM', KEYS[1], '') -- a first write, of nothing: see relief.lua
local told, key, at = {}, 0, 1
while ARGV[at] do
  local token, count = ARGV[at], tonumber(ARGV[at + 1])
  local kept = 1
  for n = 1, count do
    local ends = tonumber(redis.call('ZSCORE', KEYS[key + n], token .. ' 1') or 0)
    if ends <= now or ends > LARGEST then kept = 0 end
  end
  for n = 1, kept == 1 and count or 0 do
    local slots, ttl = KEYS[key + n], tonumber(ARGV[at + 1 + n])
    local slot = 1
    while redis.call('ZSCORE', slots, token .. ' ' .. slot) do
      redis.call('ZADD', slots, number(now + ttl), token .. ' ' .. slot)
      slot = slot + 1
    end
    local last = redis.call('ZREVRANGEBYSCORE', slots, number(LARGEST), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    redis.call('PEXPIRE', slots, number(last[2] - now))
  end
  told[#told + 1] = kept
  key, at = key + count, at + 2 + count
end
return told
