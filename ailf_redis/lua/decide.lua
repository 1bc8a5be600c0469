-- Decide on calls one after another, each of which several limits must allow, all or nothing; or put them in line.
--
-- ARGV    how many limits, five for each, then for each call: token, patience in ms (a reservation), count denied
--         (1 or 0), channel where it waits ('' for not waiting), waiter's lease in ms, and its cost by each limit
-- returns now, then for each call 1 or 0, ms after which another try may do better (-1 for never), and for each limit:
--         remaining, ms to wait (-1 for never), ms until it is as good as fresh, and the two numbers that settling wants
--         to be told

local told, limits, changed = { now }, {}, false
local at = 2
for n = 1, tonumber(ARGV[1]) do
  limits[n] = limit_at(at)
  at = at + EACH
end
local nobody -- whether nobody is in line

local function decide(token, patience, count_denied, channel, lease)
  local wait, never, looks = 0, false, true
  for n, limit in ipairs(limits) do
    limit.cost = tonumber(ARGV[at + 4 + n])
    if limit.cost > 0 then
      looks = false
      if limit.kind == 'c' and token ~= '' then drop_slots(limit, token) end
    end
    limit.wait = wait_of(limit, limit.cost)
    if limit.wait then wait = max(wait, limit.wait) else never = true end
  end

  local first, alive, _
  if not looks and not nobody then
    first = head(line)
    nobody = not first
  end
  local queued = first and first ~= token
  local allowed = not never and not queued and wait <= patience
  if queued and not never then
    local turn
    alive, _, turn = waiter(line, first)
    wait = max(1, wait, turn - now)
  end

  local base = #told
  told[base + 1] = allowed and 1 or 0
  for n, limit in ipairs(limits) do
    local cost = limit.cost
    if not allowed then cost = count_denied and min(cost, remaining_of(limit)) or 0 end
    local one, two = 0, 0
    if cost > 0 then
      one, two = charge(limit, cost, token)
      limit.changed, changed = true, true
      if not allowed then
        limit.wait = wait_of(limit, limit.cost)
        if limit.wait then wait = max(wait, limit.wait) end
      end
    end
    local place = base + 5 * n - 2
    told[place], told[place + 1] = remaining_of(limit), limit.wait or -1
    told[place + 2], told[place + 3], told[place + 4] = max(0, ends_of(limit) - now), one, two
  end

  if allowed then
    if first then
      leave_line(line, token)
      wake(line)
    end
  elseif channel ~= '' and not never then
    stand_in_line(line, token, lease, now + wait, channel)
    nobody = false
    if queued then wait = alive - now end -- it is woken when its turn comes, unless the first one has died
  end
  told[base + 2] = never and -1 or wait
end

while at <= #ARGV do
  decide(ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1', ARGV[at + 3], tonumber(ARGV[at + 4]))
  at = at + 5 + #limits
end
if changed then store() end
return told
