-- Release what a consumer holds, and with the last of it forget the consumer, so that nothing is dropped with it.
--
-- ARGV    group, consumer
-- returns 1 where nothing is left, also where the group has vanished, or 0 where the next step goes on
-- bound   ROUNDS pages of messages of each kind (see group.lua)

local ROUNDS = 8
local done = missing
for _ = 1, ROUNDS do
  done = done or give_back(ARGV[2], true)
end
if not missing then ring() end
return done and 1 or 0
