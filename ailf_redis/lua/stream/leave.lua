-- Release what a consumer holds, and remove the consumer when nothing is left: removing it would drop what it holds.
--
-- ARGV    group, consumer
-- returns 1 if nothing is left or the group is missing, 0 if the next step continues
-- bound   ROUNDS pages of messages of each kind, or a step of a reset (see reset.lua)

local ROUNDS = 4
local done = missing
if stale then
  local _, _, drop_stale = make_reset()
  drop_stale() -- after it nothing of what it drops can come back
else
  local release_all = make_release_all()
  for _ = 1, ROUNDS do
    done = done or release_all(ARGV[2], true)
  end
end
if not missing then notify() end
return done and 1 or 0
