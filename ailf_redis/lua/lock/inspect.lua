-- Read the holders of a lock, and how many tokens wait for it.
--
-- returns { { fence, ms left }…, number of waiters }; the fence is 0 where none of ours is stored
-- writes  nothing
-- bound   the holders and the waiters of the lock

local lock = lock_at(1)
local holders, waiting = {}, 0
local grants = redis.call('ZRANGEBYSCORE', lock.holders, '(' .. number(now), number(LARGEST), 'WITHSCORES')
for i = 1, #grants, 2 do
  local fence = read_fence(redis.call('HGET', lock.fences, grants[i])) or 0
  holders[#holders + 1] = { fence, math.ceil(grants[i + 1] - now) }
end
table.sort(holders, function(one, other) return one[1] < other[1] end)
for _, stored in ipairs(redis.call('HVALS', lock.waiters)) do
  if read_waiter(stored) then waiting = waiting + 1 end
end
return { holders, waiting }
