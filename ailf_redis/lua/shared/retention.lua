-- Retention: remove the entries that a stream doesn't keep; loaded before the transitions that do so (see scripts.py).
--
-- KEYS[1] stream
-- KEYS[2] meta     hash: "evicted" how many removed entries a group had not settled,
--                  "cursor" the id after which the next add looks for settled entries behind unsettled ones,
--                  "epoch" distinguishes the dedup ids of a deleted stream from those of this one
-- ARGV[1] max_len, or '' for no limit   ARGV[2] max_age_ms, or ''
-- ARGV[3] mode: 0 removes settled entries beyond max_len or max_age, 1 also unsettled ones, 2 all settled entries
-- ARGV[4..7]       the prefixes of every group's due, bell, notes and queue keys, which the group's name follows
-- returns nothing by itself
-- writes  KEYS[1] without TTL: data; KEYS[2] without TTL: it is deleted with the stream
-- bound   a step removes at most PAGE entries more than are added, and reads the ids of at most PAGE that stay, or of
--         one for each group

local stream, meta = KEYS[1], KEYS[2]
local max_len, max_age, hard, all_settled = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[3] == '2'
local PAGE = 100

-- Return for each group: its name, the last id that it has read, how many entries are pending, the oldest of these.
local function groups()
  local list = {}
  local infos = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(not infos.err and infos or {}) do
    local info = map(flat)
    local summary = redis.call('XPENDING', stream, info.name)
    list[#list + 1] = { name = info.name, read = info['last-delivered-id'], pending = summary[1], oldest = summary[2] }
  end
  return list
end

-- Tell whether some group has not settled an entry.
local function unsettled(id, list)
  for _, info in ipairs(list) do
    if before(info.read, id) or redis.call('XPENDING', stream, info.name, id, id, 1)[1] then return true end
  end
  return false
end

local function smaller(one, other) return one and before(one, other) and one or other end

-- Remove entries that needn't be kept, oldest first, to make room for `added` more.
--
-- start   the id after which to look behind unsettled entries; nil to go on where the last add stopped
-- returns how many were removed, how many of these unsettled, the id after which there may be more to remove ('' for
--         none), and whether all entries that may be removed were looked at
local function trim(added, start)
  local excess = max_len and math.max(0, redis.call('XLEN', stream) + added - max_len) or 0
  local oldest = max_age and now > max_age and number(now - max_age) .. '-0'
  if excess == 0 and not (oldest or all_settled) then return 0, 0, '', true end
  local list = groups()
  local budget, removed, evicted = PAGE + added, 0, 0
  local unlimited = all_settled -- whether a range is removed whole, and not only as far as it is excess or too old

  -- Remove the first entries of a range, at most `most`.
  local function remove_first(from, to, most)
    local taken = 0
    most = math.min(most, budget)
    while taken < most do
      local entries = redis.call('XRANGE', stream, from, to, 'COUNT', math.min(PAGE, most - taken))
      if #entries == 0 then break end
      local ids = {}
      for at, entry in ipairs(entries) do
        ids[at] = entry[1]
        if hard and unsettled(entry[1], list) then
          evicted = evicted + 1
          for _, info in ipairs(list) do
            local name = info.name
            on_entry_removed(stream, name, entry, ARGV[4] .. name, ARGV[5] .. name, ARGV[6] .. name, ARGV[7] .. name)
          end
        end
      end
      redis.call('XDEL', stream, unpack(ids))
      taken = taken + #ids
    end
    budget, removed = budget - taken, removed + taken
    return taken
  end

  -- Remove of a range what is excess or too old; `to` is an id, one with "(" before it, or "+".
  local function clear(from, to)
    excess = math.max(0, excess - remove_first(from, to, unlimited and budget or excess))
    if oldest then
      local last = string.match(to, '%d.*')
      remove_first(from, last and before(last, oldest) and to or '(' .. oldest, budget)
    end
  end

  local function result(after, whole)
    if evicted > 0 then redis.call('HINCRBY', meta, 'evicted', evicted) end
    return removed, evicted, after, whole
  end

  if hard or (#list == 0 and not all_settled) then
    clear('-', '+')
    return result(budget == 0 and '0-0' or '', budget > 0)
  elseif #list == 0 then -- without a group nothing is settled
    return result('', true)
  end

  -- Before the first pending entry, all that every group has read is settled.
  local read, first, pending = nil, nil, 0
  for _, info in ipairs(list) do
    read, pending = smaller(read, info.read), pending + info.pending
    if info.oldest then first = smaller(first, info.oldest) end
  end
  local blocked = first and not before(read, first)
  clear('-', blocked and '(' .. first or read)
  if budget == 0 then return result('0-0', false) end

  local from = first
  local function wanted() return budget > 0 and (excess > 0 or oldest and before(from, oldest)) end
  unlimited = false
  if not (blocked and wanted() and before(first, read)) then return result('', true) end

  -- Behind it, the entries between pending ones are settled.
  local many = pending > PAGE
  local cursor = start or many and redis.call('HGET', meta, 'cursor')
  if cursor and is_id(cursor) and before(first, cursor) and before(cursor, read) then from = cursor end
  local begun, had_excess, horizon, ids = from, excess > 0, read, {}
  local most = many and math.max(1, math.floor(PAGE / #list)) or PAGE
  for _, info in ipairs(list) do
    local rows = redis.call('XPENDING', stream, info.name, '(' .. from, read, most)
    for _, row in ipairs(rows) do ids[#ids + 1] = row[1] end
    if #rows == most then horizon = smaller(horizon, rows[most][1]) end
  end
  table.sort(ids, before)
  for _, id in ipairs(ids) do
    if before(horizon, id) or not wanted() then break end
    if id ~= from then clear('(' .. from, '(' .. id) end -- an id may be pending in several groups
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
    local cursor_now = after
    if had_excess and excess == 0 and begun ~= first then cursor_now = begun end -- there may be more settled ones here
    if cursor_now ~= '' then redis.call('HSET', meta, 'cursor', cursor_now) else redis.call('HDEL', meta, 'cursor') end
  end
  return result(after, after == '' and begun == first)
end
