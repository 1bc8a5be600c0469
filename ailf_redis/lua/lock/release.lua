-- End a token's grant and take the token out of the wait queues.
--
-- ARGV    token
-- returns 1 if it had an unexpired grant of every name, else 0
-- bound   the names of the lock

local held = 1
for _, lock in ipairs(all_locks()) do held = math.min(held, end_grant(lock, ARGV[1])) end
return held
