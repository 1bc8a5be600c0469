-- End the grant that has a fence, whatever its token.
--
-- ARGV    fence
-- returns 1, or 0 if there is none
-- bound   the grants of one lock: no more than its permits, and those that have ended

local lock = lock_at(1)
local grants = redis.call('HGETALL', lock.fences)
for i = 1, #grants, 2 do
  -- A grant that has ended stays ended: its token may wait for the lock again, and must keep its position.
  if grants[i + 1] == ARGV[1] and ends_of(lock, grants[i]) then return end_grant(lock, grants[i]) end
end
return 0
