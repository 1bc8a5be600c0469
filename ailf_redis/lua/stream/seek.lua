-- Move a group to a position. Its pending entries are dropped, redriven ones are due again, all receipts are invalid.
--
-- ARGV    group, position (an id, or $ for the end); '' to continue what an earlier step began
-- returns 1, or 2 if another step has to continue (see reset.lua); 0 if the group is missing, and then
--         nothing is changed

if missing then return 0 end
local reset_group, continue_reset = make_reset()
local done
if ARGV[2] == '' then
  done = not (stale or anew) or continue_reset()
else
  redis.call('XGROUP', 'SETID', stream, group, ARGV[2])
  done = reset_group()
end
notify()
return done and 1 or 2
