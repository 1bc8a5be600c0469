-- Decide on calls one after another: all limits must allow a call, all or nothing. Or add the call to the wait queue.
--
-- ARGV    number of limits, five for each, then for each call: token, max_wait in ms (a reservation), count denied
--         (1 or 0), channel to wake the waiter on ('' to not wait), waiter's lease in ms, and its cost by each limit
-- returns now, then for each call 1 or 0, ms until another request may succeed (-1 for never), and for each limit:
--         remaining, ms to wait (-1 for never), ms until it is at full capacity, and the two numbers of its charge
--         receipt, which `settle` takes
-- bound   the calls times the limits

local reply, limits, changed = { now }, {}, false
local at = 2
for n = 1, ARGV[1] do
  limits[n] = limit_at(at)
  at = at + EACH
end
local no_waiters = false -- whether the wait queue is known to be empty

while ARGV[at] do
  local token, max_wait, channel = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 3]
  local wait, never, free = 0, false, true
  for n, limit in ipairs(limits) do
    limit.cost = ARGV[at + 4 + n] + 0
    if limit.cost > 0 then
      free = false
      if limit.drop and token ~= '' then limit:drop(token) end
    end
    limit.waits = limit:wait(limit.cost)
    if limit.waits then wait = max(wait, limit.waits) else never = true end
  end

  local wait_queue, first, alive, retries
  if not free and not no_waiters then -- a call that costs nothing needn't queue
    wait_queue = queue_if_any(QUEUE, WAITERS)
    if wait_queue then first, alive, retries = wait_queue:first_alive() end
    no_waiters = not first
  end
  local queued = first and first ~= token
  local allowed = not never and not queued and wait <= max_wait
  if queued and not never then wait = max(1, wait, retries - now) end

  local base = #reply
  reply[base + 1] = allowed and 1 or 0
  for n, limit in ipairs(limits) do
    local cost, one, two = limit.cost, 0, 0
    if not allowed then cost = ARGV[at + 2] == '1' and min(cost, limit:remaining()) or 0 end
    if cost > 0 then
      one, two = limit:charge(cost, token)
      limit.changed, changed = true, true
      if not allowed then
        limit.waits = limit:wait(limit.cost)
        if limit.waits then wait = max(wait, limit.waits) end
      end
    end
    local index = base + 5 * n - 2
    reply[index], reply[index + 1] = limit:remaining(), limit.waits or -1
    reply[index + 2], reply[index + 3], reply[index + 4] = max(0, limit:ends() - now), one, two
  end

  if allowed then
    if first then
      wait_queue:leave(token)
      wait_queue:wake()
    end
  elseif channel ~= '' and not never then
    queue_at(QUEUE, WAITERS):enqueue(token, ARGV[at + 4] + 0, now + wait, channel)
    no_waiters = false
    if queued then wait = alive - now end -- it is woken when it is first, unless the first waiter has died
  end
  reply[base + 2] = never and -1 or wait
  at = at + 5 + #limits
end
if changed then store() end
return reply
