-- The token bucket, as ailf/limits has it; loaded after limit.lua.
--
-- returns nothing by itself
-- writes  nothing
--
-- since, owed, lows: the state; lows is text: ",<age>,<low>" for each; since is nil at full capacity
-- latest, debt: the time that counts, and the debt then. `settle` changes only the state: no `wait` may follow it.
-- A debt above the capacity is followed by "!<rate>,<capacity>", the limit that charged it. Of a debt that another
-- limit charged no more counts than the capacity.
-- bound   the lows of a state, which are at most FLOORS and one

makers.b = function()
  local FLOORS = 4
  local match, format = string.match, string.format

  -- Return the text that says which limit charged a debt above its capacity.
  local function charged_by(rate, capacity) return format('!%.0f,%.0f', rate, capacity) end

  local LONGEST = 2 * FLOORS * #',9007199254740992'

  -- Tell whether a text may be our lows: pairs of finite numbers, no more than are kept.
  local function are_lows(text)
    if text == ',0,0' then return true end -- most
    if #text > LONGEST then return false end
    local rest, count = string.gsub(text, ',%d+', '')
    return rest == '' and count % 2 == 0 and count <= 2 * FLOORS
  end

  -- Read a stored state: the time, the debt, the lows as text, the limit that charged; nil if it can't be ours.
  local function read(entry, from)
    if string.byte(entry, -1) ~= 59 then return nil end -- a ";": without it the pattern would backtrack for long
    local since, owed, lows, charger = match(entry, '^(%d+),(%d+)([%d,]*)(.*);$', from)
    since, owed = tonumber(since), tonumber(owed)
    if not owed or since > LARGEST or owed > LARGEST or not are_lows(lows) then return nil end
    if charger ~= '' and not match(charger, '^!%d+,%d+$') then return nil end
    return since, owed, lows, charger
  end

  local function load(id, entry, rate, per, capacity)
    local since, owed, lows, charger
    if entry then since, owed, lows, charger = read(entry, #id + 2) end
    if not since then
      return { id = id, rate = rate, per = per, capacity = capacity, entry = entry, since = nil, owed = 0, lows = '',
        latest = now, debt = 0 }
    end
    if owed > capacity * per and charger ~= charged_by(rate, capacity) then owed = capacity * per end
    local latest = max(now, since)
    return { id = id, rate = rate, per = per, capacity = capacity, entry = entry, since = since, owed = owed,
      lows = lows, latest = latest, debt = max(0, owed - rate * (latest - since)) }
  end

  -- Return the lows of the debt, with their times.
  local function lows_of(bucket)
    local lows = {}
    for age, low in string.gmatch(bucket.lows, ',(%d+),(%d+)') do lows[#lows + 1] = { bucket.since - age, low + 0 } end
    return lows
  end

  local function set_state(bucket, latest, debt, lows)
    local text = ''
    for _, low in ipairs(lows) do text = format('%s,%.0f,%.0f', text, latest - low[1], low[2]) end
    bucket.since, bucket.owed, bucket.lows = latest, debt, text
  end

  -- Raise the debt, and keep how low it was before.
  local function raise(bucket, target)
    local latest, debt = bucket.latest, bucket.debt
    target = min(target, LARGEST)
    bucket.debt = target
    if debt == 0 then -- no low is lower
      bucket.since, bucket.owed, bucket.lows = latest, target, ',0,0'
      return
    elseif bucket.since == latest then
      local low = match(bucket.lows, ',0,(%d+)$')
      if low and low + 0 < debt then -- a lower one of this millisecond is kept
        bucket.owed = target
        return
      end
    end
    local lows = {}
    for _, low in ipairs(lows_of(bucket)) do
      if low[2] < debt then lows[#lows + 1] = low end
    end
    if #lows == 0 or lows[#lows][1] < latest then lows[#lows + 1] = { latest, debt } end
    if #lows > FLOORS then
      local at
      for i = 1, #lows - 1 do
        if not at or lows[i + 1][2] - lows[i][2] < lows[at + 1][2] - lows[at][2] then at = i end
      end
      lows[at] = { lows[at + 1][1], lows[at][2] }
      table.remove(lows, at + 1)
    end
    set_state(bucket, latest, target, lows)
  end

  local function wait(bucket, cost)
    if cost > bucket.capacity then return nil end
    local over = bucket.debt - bucket.capacity * bucket.per + cost * bucket.per
    return cost > 0 and over > 0 and bucket.latest - now + ceil(over / bucket.rate) or 0
  end

  local function charge(bucket, cost)
    raise(bucket, bucket.debt + cost * bucket.per)
    return bucket.latest, bucket.debt
  end

  local function remaining(bucket)
    return floor(max(0, bucket.capacity * bucket.per - bucket.debt) / bucket.per)
  end

  local function ends(bucket) return bucket.since and bucket.since + ceil(bucket.owed / bucket.rate) or 0 end

  local function settle(bucket, cost, actual, one, two)
    local more = (actual - cost) * bucket.per
    if more >= 0 then
      local from, base = bucket.since or one, bucket.since and bucket.owed or two
      local latest = max(now, from)
      local left = max(0, base - bucket.rate * (latest - from))
      local added = max(0, base - bucket.rate * (latest - from) + more) - left
      if added == 0 then return false end
      set_state(bucket, latest, min((bucket.since and left or 0) + added, LARGEST), lows_of(bucket))
      return true
    elseif not bucket.since then
      return false
    end
    local lows, kept, back = lows_of(bucket), {}, min(-more, bucket.debt)
    for _, low in ipairs(lows) do
      if low[1] > one then back = min(back, low[2]) end
    end
    for _, low in ipairs(lows) do
      if low[1] > one then low[2] = max(0, low[2] - back) end
    end
    for at, low in ipairs(lows) do
      if not lows[at + 1] or low[2] < lows[at + 1][2] then kept[#kept + 1] = low end
    end
    set_state(bucket, bucket.latest, bucket.debt - back, kept)
    return true
  end

  local function observe(bucket, reported, reset, pause)
    local full = bucket.capacity * bucket.per
    local target = max(bucket.debt, bucket.rate * reset)
    if reported >= 0 then target = max(target, full - min(reported, bucket.capacity) * bucket.per) end
    if pause > 0 then target = max(target, full - bucket.per + bucket.rate * pause) end
    if target <= bucket.debt then return false end
    raise(bucket, target)
    return true
  end

  local function text(bucket)
    local charger = bucket.owed > bucket.capacity * bucket.per and charged_by(bucket.rate, bucket.capacity) or ''
    return format('%.0f,%.0f%s%s', bucket.since, bucket.owed, bucket.lows, charger)
  end

  return { load = load, wait = wait, charge = charge, remaining = remaining, ends = ends, settle = settle,
    observe = observe, text = text }
end
