-- End a token's grant, and give up its place in line.
--
-- ARGV    token
-- returns 1 where it had an unexpired grant of every name, else 0
-- bound   the names of the lock

local kept = 1
for _, lock in ipairs(all_locks()) do kept = math.min(kept, end_grant(lock, ARGV[1])) end
return kept
