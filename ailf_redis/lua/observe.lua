-- Let no more pass of a limit than a provider said.
--
-- ARGV    what may pass (-1 where that isn't known), ms until all may, ms for which nothing may, five for the limit
-- returns 1 where that changed something, else 0

local remaining, reset, pause = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local limit = limit_at(4)
if limit.kind == 'b' then
  local full = limit.capacity * limit.per
  local target = max(limit.debt, limit.rate * reset)
  if remaining >= 0 then target = max(target, full - min(remaining, limit.capacity) * limit.per) end
  if pause > 0 then target = max(target, full - limit.per + limit.rate * pause) end
  if target <= limit.debt then return 0 end
  raise_debt(limit, target)
else
  local left = limit.capacity
  if pause > 0 then left = 0 elseif remaining >= 0 then left = remaining end
  local over = remaining_of(limit) - left
  if over <= 0 then return 0 end
  charge(limit, over, '')
end
limit.changed = true
store()
return 1
