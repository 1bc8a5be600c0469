-- Retention: remove the entries that a stream doesn't keep; loaded before the transitions that do so (see scripts.py).
--
-- KEYS[1] stream
-- KEYS[2] meta     hash: "evicted" how many removed entries a group had not settled, "removed" how many all groups had,
--                  "cursor" the id after which the next add looks for settled entries behind unsettled ones,
--                  "epoch" distinguishes the dedup ids of a deleted stream from those of this one
-- ARGV[1] max_len, or '' for no limit   ARGV[2] max_age_ms, or ''
-- ARGV[3] mode: 0 removes settled entries beyond max_len or max_age, 1 also unsettled ones, 2 all settled entries
-- ARGV[4..8]       the prefixes of every group's due, bell, notes, queue and parked keys, before the group's name
-- returns nothing by itself
-- writes  KEYS[1] without TTL: data; KEYS[2] without TTL: it is deleted with the stream
-- bound   a step removes at most MOST entries more than are added, LARGE of these may be large; it reads no body but
--         those of at most PAGE of these and, with mode 1, of one entry, and none after ROOM bytes; it lists the ids of
--         at most PAGE unsettled entries (with mode 1 of each group), or of one for each group
--
-- No command tells an id without its body, and Lua takes 2 ms for a body of a megabyte. So the settled entries before
-- all others are removed by XTRIM, which needs no ids but the one where it ends. Only settled entries between unsettled
-- ones are read, one at a time, each to be removed.

local stream, meta = KEYS[1], KEYS[2]
local max_len, max_age, hard, all_settled = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[3] == '2'
local PAGE, MOST, LARGE = 100, 1000, 22
local ROOM = 256 * 1024
local CHUNK = 1000 -- how many arguments one command gets
-- A node of a stream with several entries is small: at most 4 kB by default, and 100 entries. XTRIM with a limit of FEW
-- removes fewer than that only where the next node has several entries, as FEW is a prime.
local FEW, MANY = 11, 128

local function smaller(one, other)
  if not (one and other) then return one or other end
  return before(one, other) and one or other
end

-- --- the unsettled entries of a group, which are pending or parked (see group.lua): no other function here knows that

-- Return the ids of entries that the group has read and not settled, in order, at most `most`. The range is as XRANGE
-- takes it.
local function unsettled_ids(name, from, to, most)
  local ids, seen = {}, {}
  local pending = redis.call('XPENDING', stream, name, from, to, most)
  local parked = redis.call('XRANGE', ARGV[8] .. name, from, to, 'COUNT', most)
  for _, source in ipairs({ pending, parked }) do
    for _, row in ipairs(source) do
      if not seen[row[1]] then ids[#ids + 1] = row[1] end
      seen[row[1]] = true
    end
  end
  if #pending > 0 and #parked > 0 then table.sort(ids, before) end -- to sort a hundred takes 0.3 ms
  for at = #ids, most + 1, -1 do ids[at] = nil end
  return ids
end

-- Return how many entries the group has read and not settled.
local function count_unsettled(name, pending) return pending + redis.call('XLEN', ARGV[8] .. name) end

-- --- one step

-- Return for each group: its name, the last id that it has read, how many entries are unsettled, the oldest of these.
local function groups()
  local list = {}
  local infos = redis.pcall('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(not infos.err and infos or {}) do
    local info = map(flat)
    list[#list + 1] = {
      name = info.name,
      read = info['last-delivered-id'],
      unsettled = count_unsettled(info.name, info.pending),
      oldest = unsettled_ids(info.name, '-', '+', 1)[1],
    }
  end
  return list
end

-- Return the end of a range before an id; nil stands for the end of the stream.
local function until_id(id) return id and '(' .. id or '+' end

-- Remove entries that needn't be kept, oldest first, to make room for `added` more.
--
-- added   how many entries will be added, and
-- bytes   how large these are: adding them may take as much work again
-- start   the id after which to look behind unsettled entries; nil to go on where the last add stopped
-- returns a table: `removed` and `evicted`, how many were removed and how many of these unsettled; `after`, the id
--         after which there may be more to remove, or ''; `whole`, whether all entries that may be removed were looked at;
--         `kept_up`, whether as much was removed as is added; `refusal`, the error of a server that takes no more data
local function trim(added, bytes, start)
  local excess = max_len and math.max(0, redis.call('XLEN', stream) + added - max_len) or 0
  local oldest = max_age and now > max_age and number(now - max_age) .. '-0'
  if excess == 0 and not (oldest or all_settled) then return { removed = 0, evicted = 0, after = '', whole = true } end
  local refusal
  if added > 0 then
    -- After a first write a server without memory no longer refuses an XADD. This one changes nothing: no group has an
    -- empty name.
    local reply = redis.pcall('ZADD', ARGV[4], 'XX', 0, '')
    refusal = type(reply) == 'table' and string.match(tostring(reply.err), 'OOM[^\r\n]*') -- 6.2 adds the line before it
  end
  local list = groups()
  local budget, large, looks, room = MOST + added, LARGE + added, PAGE + added, ROOM + bytes
  local removed, evicted, stopped = 0, 0, false -- `stopped`: the rest is for another step
  local unlimited = all_settled -- whether a range is removed whole, and not only as far as it is excess or too old

  local function count(taken)
    budget, removed = budget - taken, removed + taken
    stopped = stopped or budget <= 0 or large <= 0
    return taken
  end

  -- Remove the first entries of a range, at most `most`, whose bodies are read for the ids.
  local function remove_read(from, to, most)
    local ids = {}
    most = math.min(most, budget)
    while #ids < most and from do
      if looks <= 0 or room <= 0 then
        stopped = true
        break
      end
      local entry = redis.call('XRANGE', stream, from, to, 'COUNT', 1)[1]
      if not entry then break end
      ids[#ids + 1] = entry[1]
      looks, room = looks - 1, room - bytes_of(entry[2])
      from = after(entry[1])
    end
    for first = 1, #ids, CHUNK do
      redis.call('XDEL', stream, unpack(ids, first, math.min(first + CHUNK - 1, #ids)))
    end
    return count(#ids)
  end

  -- Remove the first entries of the stream, at most `most`, and none from the id `to` on (nil: the end of the stream).
  -- XTRIM with a limit removes whole nodes. A large entry has a node to itself, so what is left is small.
  local function remove_first(to, most)
    local total, few = 0, true
    while total < most and not stopped do
      local limit = math.min(most - total, budget, few and math.min(FEW, large) or MANY)
      local taken = redis.call('XTRIM', stream, 'MINID', '~', to or LAST, 'LIMIT', limit)
      if few and taken == limit then large = large - taken end
      if taken == 0 and (not few or limit == most - total) then break end
      few = not few or taken == limit
      total = total + count(taken)
    end
    if stopped or total >= most then return total end
    local rest = math.min(most - total, budget)
    if to then return total + remove_read('-', '(' .. to, rest) end
    return total + count(redis.call('XTRIM', stream, 'MAXLEN', '=', math.max(0, redis.call('XLEN', stream) - rest)))
  end

  -- Remove of the entries before `to` what is excess or too old. All of them can go.
  local function clear(to)
    excess = math.max(0, excess - remove_first(to, unlimited and budget or excess))
    if oldest and not stopped then remove_first(smaller(to, oldest), budget) end
  end

  -- Remove of the settled entries between two ids what is excess or too old.
  local function clear_between(from, to)
    excess = math.max(0, excess - remove_read('(' .. from, until_id(to), excess))
    if oldest and not stopped then remove_read('(' .. from, until_id(smaller(to, oldest)), budget) end
  end

  local function result(after_id, whole)
    if evicted > 0 then redis.call('HINCRBY', meta, 'evicted', evicted) end
    if removed > evicted then redis.call('HINCRBY', meta, 'removed', removed - evicted) end
    local kept_up = hard or removed >= added or room <= 0
    return {
      removed = removed, evicted = evicted, after = after_id, whole = whole, kept_up = kept_up, refusal = refusal
    }
  end

  if #list == 0 then -- without a group nothing is settled, and nothing has to be
    if not all_settled then clear(nil) end
    return result(stopped and '0-0' or '', not stopped)
  end

  -- Before the first pending entry, all that every group has read is settled.
  local read, first, n_unsettled = nil, nil, 0
  for _, info in ipairs(list) do
    read, n_unsettled = smaller(read, info.read), n_unsettled + info.unsettled
    first = smaller(first, info.oldest)
  end
  local blocked = first and not before(read, first)
  local unread = successor(read) -- the first id that some group has not read
  clear(blocked and first or unread)
  if stopped then return result('0-0', false) end

  local from = hard and smaller(first, unread) or first
  local function wanted() return not stopped and (excess > 0 or oldest and before(from, oldest)) end
  unlimited = false

  -- Return the ids of unsettled entries in order, and the id up to which these are all: nil if they are all.
  local function page(begin, to, most)
    local ids, holders, horizon = {}, {}, nil
    for _, info in ipairs(list) do
      local its = unsettled_ids(info.name, begin, to, most)
      for _, id in ipairs(its) do
        if not holders[id] then
          ids[#ids + 1], holders[id] = id, {}
        end
        table.insert(holders[id], info.name)
      end
      if #its == most then horizon = smaller(horizon, its[most]) end
    end
    if #list > 1 then table.sort(ids, before) end
    return ids, horizon, holders
  end

  if hard then
    if not (from and wanted()) then return result('', true) end
    -- Behind it the rest goes too: unsettled are those that are pending, and all that some group has not read.
    local function evict(to)
      local some_unread = unread and (not to or before(unread, to))
      if some_unread then clear(unread) end
      local before_these = removed
      if not stopped then clear(to) end
      if some_unread then evicted = evicted + removed - before_these end
    end

    local begin = '-'
    if n_unsettled > PAGE then -- entries that were removed may still be pending, before the first that is left
      local entry = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
      begin = entry and entry[1] or begin
    end
    local ids, horizon, holders = page(begin, '+', PAGE + added)
    for _, id in ipairs(ids) do
      if horizon and before(horizon, id) then break end
      evict(id)
      from = id
      if not wanted() then break end
      if redis.call('XDEL', stream, id) == 1 then
        count(1)
        excess, evicted = math.max(0, excess - 1), evicted + 1
        for _, name in ipairs(holders[id]) do
          on_entry_removed(stream, name, id, ARGV[4] .. name, ARGV[5] .. name, ARGV[6] .. name, ARGV[7] .. name,
            ARGV[8] .. name)
        end
      end
    end
    from = horizon or from
    if not horizon and not stopped then evict(nil) end
    local more = stopped or horizon and wanted()
    return result(more and '0-0' or '', not more)
  end

  if not (blocked and wanted() and before(first, read)) then return result('', true) end

  -- Behind it, the entries between pending ones are settled.
  local many = n_unsettled > PAGE
  local cursor = start or many and redis.call('HGET', meta, 'cursor')
  if cursor and is_id(cursor) and before(first, cursor) and before(cursor, read) then from = cursor end
  local begun, had_excess = from, excess > 0
  local ids, horizon = page('(' .. from, read, many and math.max(1, math.floor(PAGE / #list)) or PAGE)
  horizon = horizon or read
  for _, id in ipairs(ids) do
    if before(horizon, id) or not wanted() then break end
    clear_between(from, id)
    from = id
  end
  local after_id = ''
  if wanted() and before(horizon, read) then
    after_id = horizon
  elseif wanted() and before(from, read) then
    clear_between(from, unread)
  end
  if stopped then after_id = begun end
  if many and not start then
    local cursor_now = after_id
    if had_excess and excess == 0 and begun ~= first then cursor_now = begun end -- there may be more settled ones here
    if cursor_now ~= '' then redis.call('HSET', meta, 'cursor', cursor_now) else redis.call('HDEL', meta, 'cursor') end
  end
  return result(after_id, after_id == '' and begun == first)
end
