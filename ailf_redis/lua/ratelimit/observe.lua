-- Let no more pass of a limit than a provider reported.
--
-- ARGV    remaining (-1 if unknown), ms until full capacity, ms for which nothing may pass, five for the limit
-- returns 1 if the state changed, else 0

local limit = limit_at(4)
if not limit:observe(ARGV[1] + 0, ARGV[2] + 0, ARGV[3] + 0) then return 0 end
change(limit)
store()
return 1
