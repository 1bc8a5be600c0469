-- Let charges be as though they had been others, and let the token leave the line.
--
-- ARGV    token, then for each limit five, what was charged, what it should have been, and the mark's two numbers
-- returns 1
-- bound   the limits at hand

local token = ARGV[1]
local changed, freed = false, false
for first = 2, #ARGV, EACH + 4 do
  local limit = limit_at(first)
  local cost, actual = ARGV[first + EACH] + 0, ARGV[first + EACH + 1] + 0
  if actual < cost then freed = true end
  if cost > 0 then
    limit.changed = limit:settle(cost, actual, tonumber(ARGV[first + EACH + 2]), tonumber(ARGV[first + EACH + 3]), token)
  elseif actual > 0 then -- it was charged nothing: it is charged now
    limit:charge(actual, token)
    limit.changed = true
  end
  changed = changed or limit.changed
end
if changed then store() end

local line = crowd(QUEUE, WAITERS)
local first = line and line:head()
if first then
  line:leave(token)
  if freed or first == token then line:wake() end
end
return 1
