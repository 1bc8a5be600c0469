-- Decide on calls one after another: all limits must allow a call, all or nothing. Or add the call to a wait queue.
--
-- ARGV    number of limits, five for each, then for each call: token, max_wait in ms (a reservation), count denied
--         (1 or 0), channel to wake the waiter on ('' to not wait), waiter's lease in ms, and its cost by each limit
-- returns now, then for each call 1 or 0, ms until another request may succeed (-1 for never), and for each limit:
--         remaining, ms to wait (-1 for never), ms until it is at full capacity, and the two numbers of its charge
--         receipt, which `settle` takes
-- bound   the calls times the limits
--
-- Of each branch (see limit.lua), for one call: free (it costs nothing here), wait (ms until its limits allow the call
-- and its first waiter has tried again), wait_queue, first (its first waiter), alive and retries (of that one), behind
-- (whether that one came before this call). A waiter's position is the time at which it came; it keeps that when it
-- moves to another branch, so of two calls that wait in different branches the one that came first is never held up by
-- the other one.

local reply, limits = { now }, {}
local at = 2
for n = 1, ARGV[1] do
  limits[n] = limit_at(at)
  at = at + EACH
end
local several = #branches > 1

while ARGV[at] do
  local token, max_wait, channel = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 3]
  local wait, never = 0, false
  for _, each in ipairs(branches) do each.free, each.wait = true, 0 end
  for n, limit in ipairs(limits) do
    limit.cost = ARGV[at + 4 + n] + 0
    if limit.cost > 0 then
      limit.branch.free = false
      if limit.drop and token ~= '' then limit:drop(token) end
    end
    limit.waits = limit:wait(limit.cost)
    if limit.waits then
      limit.branch.wait, wait = max(limit.branch.wait, limit.waits), max(wait, limit.waits)
    else
      never = true
    end
  end

  local home, since, queued -- the branch in which this call waits, and its position; whether it is behind another call
  for _, each in ipairs(branches) do
    each.wait_queue, each.first, each.behind = nil, nil, false
    if not each.free and not each.no_waiters then -- a call that costs nothing needn't queue
      each.wait_queue = queue_if_any(each.queue, each.waiters)
      if each.wait_queue then each.first, each.alive, each.retries = each.wait_queue:first_alive() end
      each.no_waiters = not each.first
      if each.first and channel ~= '' and not since then
        since = several and redis.call('ZSCORE', each.queue, token)
        if since or each.first == token then home = each end
      end
    end
  end
  for _, each in ipairs(branches) do
    if each.first and each.first ~= token then
      each.behind = not since or since + 0 > redis.call('ZSCORE', each.queue, each.first) + 0
      queued = queued or each.behind
    end
  end
  local allowed = not never and not queued and wait <= max_wait

  local base = #reply
  reply[base + 1] = allowed and 1 or 0
  for n, limit in ipairs(limits) do
    local cost, one, two = limit.cost, 0, 0
    if not allowed then cost = ARGV[at + 2] == '1' and min(cost, limit:remaining()) or 0 end
    if cost > 0 then
      one, two = limit:charge(cost, token)
      change(limit)
      if not allowed then
        limit.waits = limit:wait(limit.cost)
        if limit.waits then limit.branch.wait = max(limit.branch.wait, limit.waits) end
      end
    end
    local index = base + 5 * n - 2
    reply[index], reply[index + 1] = limit:remaining(), limit.waits or -1
    reply[index + 2], reply[index + 3], reply[index + 4] = max(0, limit:ends() - now), one, two
  end

  local binding = branches[1] -- the branch in which the call waits for longest
  for _, each in ipairs(branches) do
    if each.behind then each.wait = max(1, each.wait, each.retries - now) end
    if each.wait > binding.wait then binding = each end
  end
  if not allowed then wait = binding.wait end
  local waits = not allowed and not never and channel ~= ''
  if home and (allowed or waits and home ~= binding) then
    home.wait_queue:leave(token)
    if home.first == token then home.wait_queue:wake() end
  end
  if waits then
    local line = queue_at(binding.queue, binding.waiters)
    line:enqueue(token, ARGV[at + 4] + 0, now + wait, channel, false, since)
    binding.no_waiters = false
    -- It is woken when it is first, unless the first waiter has died.
    if binding.behind then wait = binding.alive - now end
  end
  reply[base + 2] = never and -1 or wait
  at = at + 5 + #limits
end
store()
return reply
