-- Decide on calls that are all like most: by one token bucket, while nobody waits, and each passes at once. Other calls
-- go on to decide.lua, as does a state that another limit has charged or that can't be ours. It is loaded before the
-- functions that decide.lua needs, since making these takes longer than all that is done here.
--
-- KEYS     states, queue: see limit.lua and wait_queue.lua
-- ARGV     as decide.lua
-- returns  what decide.lua returns; nothing by itself where decide.lua has to decide
-- writes   KEYS[1] as limit.lua
-- The arithmetic is that of token_bucket.lua, which explains it: `times` and `lows` are the lows of the debt.
-- bound    the calls times the lows of a state, which are FLOORS and one

local function take()
  if redis.call('ZCARD', KEYS[2]) > 0 then return nil end
  local FLOORS, MARGIN, format = 4, 1000, string.format
  local id, rate, per, capacity = ARGV[3], ARGV[4] + 0, ARGV[5] + 0, ARGV[6] + 0
  local full = capacity * per
  local latest, debt, times, lows, count = now, 0, {}, {}, 0
  local stored = redis.call('GET', KEYS[1])
  if stored then
    if string.sub(stored, 1, #id + 1) ~= id .. ':' then return nil end
    local since, owed, text = string.match(stored, '^(%d+),(%d+)([%d,]+);$', #id + 2)
    since, owed = tonumber(since), tonumber(owed)
    if not since or since > LARGEST or owed > full then return nil end
    local length = 0
    for age, low in string.gmatch(text, ',(%d+),(%d+)') do
      length, count = length + #age + #low + 2, count + 1
      times[count], lows[count] = since - age, low + 0
    end
    if length ~= #text or count > FLOORS then return nil end
    latest = math.max(now, since)
    debt = math.max(0, owed - rate * (latest - since))
  end

  local reply, size, ends = { now }, 1, 0
  for at = 12, #ARGV, 6 do
    local cost = ARGV[at] + 0
    if cost <= 0 or cost * per > full - debt then return nil end
    local kept = 0
    for n = 1, debt > 0 and count or 0 do
      if lows[n] < debt then
        kept = kept + 1
        times[kept], lows[kept] = times[n], lows[n]
      end
    end
    if kept == 0 or times[kept] < latest then
      kept = kept + 1
      times[kept], lows[kept] = latest, debt
    end
    if kept > FLOORS then -- join the two that differ least; the lower low counts for both
      local join = 1
      for n = 2, kept - 1 do
        if lows[n + 1] - lows[n] < lows[join + 1] - lows[join] then join = n end
      end
      times[join] = times[join + 1]
      for n = join + 1, kept - 1 do times[n], lows[n] = times[n + 1], lows[n + 1] end
      kept = kept - 1
    end
    count, debt = kept, debt + cost * per
    ends = latest + math.ceil(debt / rate)
    reply[size + 1], reply[size + 2], reply[size + 3], reply[size + 4] = 1, 0, math.floor((full - debt) / per), 0
    reply[size + 5], reply[size + 6], reply[size + 7] = math.max(0, ends - now), latest, debt
    size = size + 7
  end

  local text = format('%s:%.0f,%.0f', id, latest, debt)
  for n = 1, count do text = format('%s,%.0f,%.0f', text, latest - times[n], lows[n]) end
  local left = math.max(1, ends - now + MARGIN, stored and redis.call('PTTL', KEYS[1]) or 0)
  redis.call('SET', KEYS[1], text .. ';', 'PX', number(math.min(left, LARGEST)))
  return reply
end

if ARGV[1] == '1' and ARGV[2] == 'b' then
  local taken = take()
  if taken then return taken end
end
