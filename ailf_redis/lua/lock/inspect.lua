-- Who has a lock, and how many wait; changes nothing.
--
-- returns { { fence, ms left }…, how many are in line }; the fence is 0 where none of ours is stored
-- bound   the holders of the lock and the waiters in line

local lock = lock_at(1)
local holders, waiting = {}, 0
local grants = redis.call('ZRANGEBYSCORE', lock.holders, '(' .. number(now), number(LARGEST), 'WITHSCORES')
for i = 1, #grants, 2 do
  local fence = fence_in(redis.call('HGET', lock.fences, grants[i])) or 0
  holders[#holders + 1] = { fence, math.ceil(grants[i + 1] - now) }
end
table.sort(holders, function(one, other) return one[1] < other[1] end)
for _, known in ipairs(redis.call('HVALS', lock.waiters)) do
  if living(known) then waiting = waiting + 1 end
end
return { holders, waiting }
