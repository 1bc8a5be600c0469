-- Decide on a call that several limits must allow, all or nothing; or put it in line.
--
-- ARGV    token, patience in ms (a reservation), count denied (1 or 0), channel where it waits ('' for not waiting),
--         waiter's lease in ms, then six for each limit
-- returns { 1 or 0, ms after which another try may do better (-1 for never), 1 where somebody else is first in line,
--         now, then for each limit { remaining, ms to wait (-1 for never), ms until it is as good as fresh, mark } }

local token, patience, count_denied = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local channel, lease = ARGV[4], tonumber(ARGV[5])
local limits, wait, never, looks = {}, 0, false, true
for first = 6, #ARGV, EACH do
  local limit = limit_at(first)
  if limit.cost > 0 then
    looks = false
    if limit.kind == 'c' then drop_slots(limit, token) end
  end
  limit.wait = wait_of(limit)
  if limit.wait then wait = math.max(wait, limit.wait) else never = true end
  limits[#limits + 1] = limit
end

local first, _
if not looks then first, _ = head(line) end
local queued = first and first ~= token
local allowed = not never and not queued and wait <= patience

local changed = {}
for _, limit in ipairs(limits) do
  local cost = limit.cost
  if not allowed then cost = count_denied and math.min(cost, remaining_of(limit)) or 0 end
  limit.mark = {}
  if cost > 0 then
    limit.mark = charge(limit, cost, token)
    changed[#changed + 1] = limit
  end
end
if #changed > 0 then store(changed) end

if queued and not never then
  local _, _, turn = waiter(line, first)
  wait = math.max(1, wait, turn - now)
end
if allowed then
  if first then
    leave_line(line, token)
    wake(line)
  end
elseif channel ~= '' and not never then
  stand_in_line(line, token, lease, now + wait, channel)
  if queued then wait = lease end
end

local told = { allowed and 1 or 0, never and -1 or wait, queued and 1 or 0, now }
for _, limit in ipairs(limits) do
  told[#told + 1] = { number(remaining_of(limit)), limit.wait or -1, math.max(0, ends_of(limit) - now), limit.mark }
end
return told
