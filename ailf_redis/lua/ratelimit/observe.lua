-- Let no more pass of a limit than a provider said.
--
-- ARGV    what may pass (-1 where that isn't known), ms until all may, ms for which nothing may, five for the limit
-- returns 1 where that changed something, else 0

local limit = limit_at(4)
limit.changed = limit:observe(ARGV[1] + 0, ARGV[2] + 0, ARGV[3] + 0)
if not limit.changed then return 0 end
store()
return 1
