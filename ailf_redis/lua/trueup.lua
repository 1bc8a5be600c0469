-- Let charges be as though they had been others, and let the token leave the line.
--
-- ARGV    token, then for each limit five, what was charged, what it should have been, and the mark's two numbers
-- returns 1

local token = ARGV[1]
local changed, freed = false, false

local function settle(limit, cost, actual, one, two)
  if actual < cost then freed = true end
  if limit.kind == 'c' then
    if actual == 0 then drop_slots(limit, token) end
    return
  end
  if cost == 0 then -- it was charged nothing: it is charged now
    if actual > 0 then
      charge(limit, actual, token)
      limit.changed, changed = true, true
    end
    return
  end
  local fresh = not limit.state[1]
  if fresh and actual <= cost then return end
  if limit.kind == 'b' then
    local more = (actual - cost) * limit.per
    if more >= 0 then
      local from = fresh and one or limit.state[1]
      local base = fresh and two or limit.state[2]
      local latest = max(now, from)
      local leaked = limit.rate * (latest - from)
      local added = max(0, base - leaked + more) - max(0, base - leaked)
      if added == 0 then return end
      local debt = 0
      if not fresh then debt = max(0, base - leaked) end
      limit.state = with_lows(latest, min(debt + added, LARGEST), lows_of(limit.state))
    else
      local latest, debt = limit.latest, limit.debt
      local back = min(-more, debt)
      local lows, kept = lows_of(limit.state), {}
      for _, low in ipairs(lows) do
        if low[1] > one then back = min(back, low[2]) end
      end
      for _, low in ipairs(lows) do
        if low[1] > one then low[2] = max(0, low[2] - back) end
      end
      for at, low in ipairs(lows) do
        if not lows[at + 1] or low[2] < lows[at + 1][2] then kept[#kept + 1] = low end
      end
      limit.state = with_lows(latest, debt - back, kept)
    end
  elseif limit.kind == 'f' then
    local begin, used = window_of(limit)
    if one ~= begin then return end
    limit.state = { begin, max(0, min(used - cost + actual, LARGEST)) }
  else
    local latest, newest, counted, _, oldest = buckets_of(limit)
    if gone(limit, one) <= latest then return end
    add_to_bucket(limit, max(newest, one), counted, oldest, one, actual - cost)
  end
  limit.changed, changed = true, true
end

for first = 2, #ARGV, EACH + 4 do
  local rest = {}
  for n = 0, 3 do rest[n + 1] = tonumber(ARGV[first + EACH + n]) end
  settle(limit_at(first), unpack(rest))
end
if changed then store() end
local first = head(line)
if first then
  leave_line(line, token)
  if freed or first == token then wake(line) end
end
return 1
