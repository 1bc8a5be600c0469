-- Replace charges with others, and take the token out of the wait queue.
--
-- ARGV    token, then for each limit five, the charged cost, the actual cost, and the two numbers of the charge receipt
-- returns 1
-- bound   the limits of a request

local token = ARGV[1]
local changed, freed = false, false
for first = 2, #ARGV, EACH + 4 do
  local limit = limit_at(first)
  local cost, actual = ARGV[first + EACH] + 0, ARGV[first + EACH + 1] + 0
  local one, two = tonumber(ARGV[first + EACH + 2]), tonumber(ARGV[first + EACH + 3])
  if actual < cost then freed = true end
  if cost > 0 then
    limit.changed = limit:settle(cost, actual, one, two, token)
  elseif actual > 0 then -- nothing was charged, so that there is no receipt: the actual cost is charged now
    limit:charge(actual, token)
    limit.changed = true
  end
  changed = changed or limit.changed
end
if changed then store() end

local wait_queue = queue_if_any(QUEUE, WAITERS)
local first = wait_queue and wait_queue:first_alive()
if first then
  wait_queue:leave(token)
  if freed or first == token then wait_queue:wake() end
end
return 1
