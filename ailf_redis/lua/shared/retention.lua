-- How room is made in a stream; it stands before the texts of those that do (see scripts.py).
--
-- KEYS[1] stream
-- KEYS[2] meta     hash: "evicted" how many entries were removed that a group had not settled,
--                  "cursor" the id after which the next add looks for settled entries behind unsettled ones,
--                  "epoch" what tells dedup ids of a stream that was deleted from those of this one
-- ARGV[1] max_len, or '' for any   ARGV[2] max_age_ms, or ''
-- ARGV[3] what goes: 0 what is settled and too much or too old, 1 also where it is not settled, 2 all that is settled
-- ARGV[4..7]       what the keys of every group's due, bell, notes, queue begin with
-- returns nothing by itself
-- writes  KEYS[1] without TTL: data; KEYS[2] without TTL: it goes with the stream
-- bound   a step removes up to PAGE entries more than are added, and looks at up to PAGE that stay, by their ids alone

local stream, meta = KEYS[1], KEYS[2]
local max_len, max_age, hard, drop = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[3] == '2'
local PAGE = 100

-- The groups: name, the id up to which it has read, how many entries are out, the oldest of these.
local function groups()
  local found = {}
  local infos = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(not infos.err and infos or {}) do
    local each = map(flat)
    local out = redis.call('XPENDING', stream, each.name)
    found[#found + 1] = { name = each.name, read = each['last-delivered-id'], out = out[1], oldest = out[2] }
  end
  return found
end

local function unsettled(id, all) -- by some group
  for _, each in ipairs(all) do
    if before(each.read, id) or redis.call('XPENDING', stream, each.name, id, id, 1)[1] then return true end
  end
  return false
end

local function lower(one, other) return one and before(one, other) and one or other end

-- Remove what goes, oldest first, to make room for so many more.
--
-- start   after which id to look behind unsettled entries; nil to go on where the last add stopped
-- returns how many were removed, how many of these unsettled, the id after which there may be more to remove ('' where
--         there is none), and whether all entries that may go were looked at
local function trim(added, start)
  local excess = max_len and math.max(0, redis.call('XLEN', stream) + added - max_len) or 0
  local oldest = max_age and now > max_age and number(now - max_age) .. '-0'
  if excess == 0 and not (oldest or drop) then return 0, 0, '', true end
  local all = groups()
  local budget, removed, lost = PAGE + added, 0, 0
  local all_goes = drop

  -- Remove the first entries of a range, all of which may go.
  local function take(from, to, most)
    local taken = 0
    most = math.min(most, budget)
    while taken < most do
      local entries = redis.call('XRANGE', stream, from, to, 'COUNT', math.min(PAGE, most - taken))
      if #entries == 0 then break end
      local ids = {}
      for at, entry in ipairs(entries) do
        ids[at] = entry[1]
        if hard and unsettled(entry[1], all) then
          lost = lost + 1
          for _, each in ipairs(all) do
            let_find(stream, each.name, entry, now, ARGV[4] .. each.name, ARGV[5] .. each.name, ARGV[6] .. each.name, ARGV[7] .. each.name)
          end
        end
      end
      redis.call('XDEL', stream, unpack(ids))
      taken = taken + #ids
    end
    budget, removed = budget - taken, removed + taken
    return taken
  end

  -- Remove what goes of a range; its end is an id, one with "(" before it, or "+".
  local function clear(from, to)
    excess = math.max(0, excess - take(from, to, all_goes and budget or excess))
    if oldest then
      local last = string.match(to, '%d.*')
      take(from, last and before(last, oldest) and to or '(' .. oldest, budget)
    end
  end

  local function told(after, whole)
    if lost > 0 then redis.call('HINCRBY', meta, 'evicted', lost) end
    return removed, lost, after, whole
  end

  if hard or (#all == 0 and not drop) then
    clear('-', '+')
    return told(budget == 0 and '0-0' or '', budget > 0)
  elseif #all == 0 then -- nobody has settled anything
    return told('', true)
  end

  -- Up to the first that is out, all that every group has read is settled.
  local read, first, out = nil, nil, 0
  for _, each in ipairs(all) do
    read, out = lower(read, each.read), out + each.out
    if each.oldest then first = lower(first, each.oldest) end
  end
  local blocked = first and not before(read, first)
  clear('-', blocked and '(' .. first or read)
  if budget == 0 then return told('0-0', false) end

  local from = first
  local function wanted() return budget > 0 and (excess > 0 or oldest and before(from, oldest)) end
  all_goes = false
  if not (blocked and wanted() and before(first, read)) then return told('', true) end

  -- Behind it, what lies between those that are out is settled.
  local many = out > PAGE
  local cursor = start or many and redis.call('HGET', meta, 'cursor')
  if cursor and is_id(cursor) and before(first, cursor) and before(cursor, read) then from = cursor end
  local begun, pressed, horizon, ids = from, excess > 0, read, {}
  local most = many and math.max(1, math.floor(PAGE / #all)) or PAGE
  for _, each in ipairs(all) do
    local rows = redis.call('XPENDING', stream, each.name, '(' .. from, read, most)
    for _, row in ipairs(rows) do ids[#ids + 1] = row[1] end
    if #rows == most then horizon = lower(horizon, rows[most][1]) end
  end
  table.sort(ids, before)
  for _, id in ipairs(ids) do
    if before(horizon, id) or not wanted() then break end
    if id ~= from then clear('(' .. from, '(' .. id) end -- several groups may have it
    from = id
  end
  local after = ''
  if wanted() and before(horizon, read) then
    after = horizon
  elseif wanted() and before(from, read) then
    clear('(' .. from, read)
  end
  if budget == 0 then after = begun end
  if many and not start then
    local keep = after
    if pressed and excess == 0 and begun ~= first then keep = begun end -- there may be more where these were
    if keep ~= '' then redis.call('HSET', meta, 'cursor', keep) else redis.call('HDEL', meta, 'cursor') end
  end
  return told(after, after == '' and begun == first)
end
