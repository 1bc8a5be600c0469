-- Decide on calls one after another, each of which several limits must allow, all or nothing; or put them in line.
--
-- ARGV    how many limits, five for each, then for each call: token, patience in ms (a reservation), count denied
--         (1 or 0), channel where it waits ('' for not waiting), waiter's lease in ms, and its cost by each limit
-- returns now, then for each call 1 or 0, ms after which another try may do better (-1 for never), and for each limit:
--         remaining, ms to wait (-1 for never), ms until it is as good as fresh, and the two numbers that settling wants
--         to be told
-- bound   the calls, each times the limits

local told, limits, changed = { now }, {}, false
local at = 2
for n = 1, ARGV[1] do
  limits[n] = limit_at(at)
  at = at + EACH
end
local nobody -- whether nobody is in line

while ARGV[at] do
  local token, patience, channel = ARGV[at], ARGV[at + 1] + 0, ARGV[at + 3]
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

  local line, first, alive, looks
  if not free and not nobody then -- who pays nothing stands in nobody's way
    line = crowd(QUEUE, WAITERS)
    if line then first, alive, looks = line:head() end
    nobody = not first
  end
  local queued = first and first ~= token
  local allowed = not never and not queued and wait <= patience
  if queued and not never then wait = max(1, wait, looks - now) end

  local base = #told
  told[base + 1] = allowed and 1 or 0
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
    local place = base + 5 * n - 2
    told[place], told[place + 1] = limit:remaining(), limit.waits or -1
    told[place + 2], told[place + 3], told[place + 4] = max(0, limit:ends() - now), one, two
  end

  if allowed then
    if first then
      line:leave(token)
      line:wake()
    end
  elseif channel ~= '' and not never then
    line_of(QUEUE, WAITERS):stand(token, ARGV[at + 4] + 0, now + wait, channel)
    nobody = false
    if queued then wait = alive - now end -- it is woken when its turn comes, unless the first one has died
  end
  told[base + 2] = never and -1 or wait
  at = at + 5 + #limits
end
if changed then store() end
return told
