-- Who has a lock, and how many wait; changes nothing.
--
-- returns { { fence, ms left }…, how many are in line }
-- bound   the holders of the lock and the waiters in line

local lock = lock_at(1)
local holders, waiting = {}, 0
local grants = redis.call('ZRANGEBYSCORE', lock.holders, '(' .. number(now), '+inf', 'WITHSCORES')
for i = 1, #grants, 2 do
  holders[#holders + 1] = { redis.call('HGET', lock.fences, grants[i]), grants[i + 1] - now }
end
table.sort(holders, function(one, other) return tonumber(one[1]) < tonumber(other[1]) end)
for _, known in ipairs(redis.call('HVALS', lock.waiters)) do
  if tonumber(string.match(known, '^%d+')) > now then waiting = waiting + 1 end
end
return { holders, waiting }
