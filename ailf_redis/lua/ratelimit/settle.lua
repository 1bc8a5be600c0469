-- Replace charges with others, and take the token out of the wait queue.
--
-- KEYS    behind those of the charges, of each other branch of a budget tree: queue, waiters
-- ARGV    token, then for each limit five, the charged cost, the actual cost, and the two numbers of the charge receipt
-- returns 1
-- bound   the limits of a request, and the branches

local token = ARGV[1]
for first = 2, #ARGV, EACH + 4 do
  local limit = limit_at(first)
  local cost, actual = ARGV[first + EACH] + 0, ARGV[first + EACH + 1] + 0
  local one, two = tonumber(ARGV[first + EACH + 2]), tonumber(ARGV[first + EACH + 3])
  if actual < cost then limit.branch.freed = true end
  if cost > 0 then
    if limit:settle(cost, actual, one, two, token) then change(limit) end
  elseif actual > 0 then -- nothing was charged, so that there is no receipt: the actual cost is charged now
    limit:charge(actual, token)
    change(limit)
  end
end
store()

for at = used + 1, #KEYS, 2 do branches[#branches + 1] = { queue = KEYS[at], waiters = KEYS[at + 1] } end
for _, each in ipairs(branches) do
  local wait_queue = queue_if_any(each.queue, each.waiters)
  local first = wait_queue and wait_queue:first_alive()
  if first then
    wait_queue:leave(token)
    if each.freed or first == token then wait_queue:wake() end
  end
end
return 1
