-- Lease entries of a group to a consumer: first those that are due again, then new ones in id order.
--
-- ARGV    group, consumer, count, lease_ms, alive_ms, max_deliveries; the most bytes of an entry, if that is above
--         HUGE, else '' or nothing; of a caller that waits, else '' or nothing: its waiter, how many other callers wait
--         with it, and for how many ms they wait; how many members of a lane may be active, if that isn't one
-- returns { due again: { member, fields, grant, attempt }…, new entries: { id, fields }…, the grant of each of these,
--         ids of new dead letters, reset, last id ('' if there may be more at once), last id of the wake-up stream, ms
--         until the next is due or -1, and how a waiter goes on (see watch.lua) }; instead of fields that are too
--         large, their size in bytes
-- bound   2 * MOST_DUE entries that are due, MOST_NEW + MOST_PARKED new ones that are leased or parked, MOST_AHEAD of
--         which were read ahead; DEAD_CONSUMERS, the consumers that hold entries, a page of what others left pending,
--         and a page of parked ones; for each entry as many members of its lane as may be active
--
-- Another program may have added entries of any size. The entries of one reply fit in ROOM, or the reply has a single
-- one, so that no entry fails because of others. A step reads FIRST new entries, and then as many as fit in ROOM at
-- their mean size.

local consumer = ARGV[2]
local count, lease, alive_for, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease_ends = number(now + lease)
local now_text = number(now)
local CHUNK = 1000 -- how many arguments one command gets
local DEAD_CONSUMERS = 8 -- whose leases one step ends; the next fetch does the rest at once
local MOST_NEW, MOST_DUE, MOST_PARKED = 500, 200, 150 -- entries of each kind in one step
local MOST_AHEAD, ROOM_AHEAD = 150, 256 * 1024 -- entries that are read ahead in one step, and their bytes
local FIRST, RUN = 4, 32
local ROOM, HUGE = 32 * 1024 * 1024, 63 * 1024 * 1024 -- bytes; see FOREIGN in resp.py
local huge = math.max(HUGE, tonumber(ARGV[7]) or 0)
local claims, fresh, dead_ids, reset, more = {}, {}, {}, 0, false
local sent, full = 0, false -- bytes of entries in the reply, and whether no other entry fits

if missing then
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  local reset_group = make_reset()
  reset_group()
  redis.call('HDEL', notes, 'paused')
  redis.call('HSET', notes, 'watch', NOBODY .. ' 0 ' .. number(now + alive_for)) -- those that waited before may sleep
  paused, watch, anew, sweep = unpack(redis.call('HMGET', notes, 'paused', 'watch', 'anew', 'sweep'))
  reset = 1
end
local first_grant = 1 + base -- the grant of a first delivery

local wanted_width = tonumber(ARGV[11]) or 1
if wanted_width ~= (width or 1) then
  width, most_active, lanes = wanted_width, math.max(wanted_width, most_active or 1), nil
  redis.call('HSET', notes, 'concurrency', width .. ' ' .. most_active)
end

-- Return the reply of the script, with what the caller needs to wait.
local function finished()
  notify()
  local leased = #claims + #fresh
  local last, rung, wait, state = '', '', -1, AGAIN
  if (ARGV[8] or '') ~= '' then
    local others, waits = tonumber(ARGV[9]), tonumber(ARGV[10])
    last, rung, wait, state = go_on(ARGV[8], others, waits, watch, alive_for, leased, leased >= count, more, paused)
  elseif not more and leased + #dead_ids == 0 then
    last, rung = place(paused)
    wait = next_due(paused)
  end
  return { claims, fresh, first_grant, dead_ids, reset, last, rung, wait, state }
end

redis.call('ZADD', alive, number(now + alive_for), consumer)
-- Takeover: end the leases of consumers whose heartbeat is overdue.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now_text, 'LIMIT', 0, DEAD_CONSUMERS)) do
  local release_all = make_release_all()
  if not release_all(name, false) then more = true end
end

if stale or anew then
  local _, continue_reset = make_reset()
  if not continue_reset() then -- it ends leases: nothing is leased before it is done
    more = true
    return finished()
  end
end
if paused then return finished() end

-- Find what would never be delivered, once per lease for the whole group, a page at a time: what consumers have pending
-- that never fetched here, and parked entries without a due time. If more is pending than is in `due`, another program
-- has changed that: then the pending entries of all consumers are looked at.
local function continue_sweep()
  local function left_by_others()
    local summary = redis.call('XPENDING', stream, group)
    local lost = summary[1] > redis.call('ZCARD', due)
    local names = {}
    for _, row in ipairs(summary[1] > 0 and summary[4] or {}) do
      if lost or row[1] ~= WAITING and not redis.call('ZSCORE', alive, row[1]) then names[#names + 1] = row[1] end
    end
    return names
  end

  -- Tell whether a parked entry without a due time would never get one. The first one of its lane may wait too, for a
  -- redriven one that was due before it came, or where several may be active.
  local function is_lost(id, key)
    if not key then return true end
    if width then return #get_lanes().look(key) == 0 end
    local first, redriven = first_in_lane(key), first_in_lane(key, '~')
    return (not first or first == id) and (redriven and redis.call('ZSCORE', due, redriven) or 'inf') == 'inf'
  end

  -- Look at a page of parked entries: give those a due time that lack one, if another program has deleted `due`. Return
  -- the id after which to go on, or nil, and whether any lacked it.
  local function find_lost_parked(from)
    local begin = from and is_id(from) and after(from) or '-'
    local entries, ids, found = redis.call('XRANGE', parked, begin, '+', 'COUNT', PAGE), {}, false
    for at, entry in ipairs(entries) do ids[at] = entry[1] end
    local scores = #ids > 0 and redis.call('ZMSCORE', due, unpack(ids))
    for n, id in ipairs(ids) do
      local at, key
      if not scores[n] then at, key = parked_terms(id) end
      if at and is_lost(id, key) then
        redis.call('ZADD', due, number(math.max(now, at)), id)
        if key then enter_lanes(0, lane_member(key, id)) end
        found = true
      end
    end
    return #ids == PAGE and ids[PAGE] or nil, found
  end

  local cursor = redis.call('HGET', notes, 'cursor') or ''
  local from, name = string.match(cursor, '^(%d+%-%d+) (.*)$')
  local reached, left = not from, PAGE
  for _, owner in ipairs(left_by_others()) do
    if reached or owner == name then
      local begin = not reached and is_id(from) and after(from) or '-'
      reached = true
      local rows = redis.call('XPENDING', stream, group, begin, '+', left, owner)
      for _, row in ipairs(rows) do
        if row[3] >= lease then redis.call('ZADD', due, 'NX', now_text, row[1]) end
      end
      left = left - #rows
      if left == 0 then
        redis.call('HSET', notes, 'cursor', rows[#rows][1] .. ' ' .. owner)
        more = true
        return
      end
    end
  end
  local rest, found = find_lost_parked(string.match(cursor, '^parked (%d+%-%d+)$'))
  if rest then redis.call('HSET', notes, 'cursor', 'parked ' .. rest) else redis.call('HDEL', notes, 'cursor') end
  if found then
    more = true
  else
    redis.call('HSET', notes, 'sweep', lease_ends)
  end
end

if now >= (tonumber(sweep) or 0) then continue_sweep() end

-- Return an entry's content in the reply: its fields, or their size if no reply can hold them; nil if this one is full.
local function in_reply(fields)
  local bytes = bytes_of(fields)
  local content = bytes <= huge and fields or bytes
  if content == bytes then bytes = OVERHEAD end
  if full or sent > 0 and sent + bytes > ROOM then
    full, more = true, true
    return nil
  end
  sent = sent + bytes
  return content
end

-- Leave a member that was just leased to the next fetch; this delivery doesn't count.
local function put_off(member)
  local key, name, id = locate(member)
  uncount(member)
  redis.call('XCLAIM', key, name, WAITING, 0, id, 'JUSTID')
end

local unparked = false

-- Return the function that leases a member that is due. It is made where there is one (see release.lua).
local function make_take()
  -- Lease a member to the consumer; return its entry, or nil if it was removed from the stream.
  local function claim(member, ...)
    local key, name, id = locate(member)
    local entry = redis.call('XCLAIM', key, name, consumer, 0, id, ...)[1]
    return entry and entry[2]
  end

  -- Where several members of a lane may be active: tell whether a member that was just leased may be, and let the others
  -- that are due wait for a new turn. There are too many if the group's concurrency was lowered; then it waits again.
  local keeps_lease = width and function(member, key)
    local not_due, rivals = 0, {}
    for n, each in ipairs((get_lanes().look(key))) do
      if each[2] >= now + 1 then
        not_due = not_due + 1
      elseif each[1] ~= member then
        rivals[#rivals + 1] = { each[1], each[2], n }
      end
    end
    if not_due >= width then
      uncount(member)
      set_waiting(member, 'inf')
      return false
    end
    table.sort(rivals, function(one, other)
      return one[2] < other[2] or one[2] == other[2] and one[3] < other[3]
    end)
    for _, each in ipairs(rivals) do
      redis.call('ZADD', due, get_lanes().next_turn(), each[1])
      lane_moved = true
    end
    fill_lane(key)
    return true
  end

  -- Lease a parked entry, whose first delivery is due.
  local function take_parked(id, key)
    redis.call('XDEL', parked, id)
    unparked = true
    local fields = claim(id, 'RETRYCOUNT', 1, 'FORCE')
    if key then redis.call('HSET', notes, id .. ':k', key) end
    local options = fields and options_of(fields, 1)
    note_options(id, options)
    if fields and keeps_lease and key and not keeps_lease(id, key) then return end
    local content = fields and in_reply(fields)
    if content then
      redis.call('ZADD', due, lease_ends, id)
      claims[#claims + 1] = { id, content, 1 + base, 1 }
    elseif fields then
      put_off(id)
    else
      finish(id)
    end
  end

  local function take(member)
    local row = pending_row(member)
    if not row then
      local at, key = parked_terms(member)
      if not at then
        remove_state(member) -- another program acknowledged it
      else
        take_parked(member, key)
      end
      return
    end
    local uncounted, own_most = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
    local attempt = attempts(row, uncounted)
    if attempt >= (tonumber(own_most) or most) then
      local error_text = redis.call('HGET', notes, member .. ':e') or 'every lease ended unsettled'
      dead_ids[#dead_ids + 1] = move_to_dead_letters(member, attempt, 'max_deliveries', error_text)
      return
    end
    local fields = claim(member)
    local key = fields and keeps_lease and redis.call('HGET', notes, member .. ':k')
    if key and not keeps_lease(member, key) then return end
    local content = fields and in_reply(fields)
    if content then
      redis.call('ZADD', due, lease_ends, member)
      claims[#claims + 1] = { member, content, row[4] + 1 + base, attempt + 1 }
    elseif full then
      put_off(member)
    else -- removed from the stream while it was pending
      finish(member)
    end
  end

  return take
end

local take
local taken, none_due = 0, false
local most_due = math.min(count, MOST_DUE)
while #claims < most_due and not full do
  local members = redis.call('ZRANGEBYSCORE', due, '-inf', '(' .. number(now + 1), 'LIMIT', 0, most_due - #claims)
  none_due = #members == 0
  if none_due or taken >= MOST_DUE then break end
  lane_moved = false
  take = take or make_take()
  for _, member in ipairs(members) do
    take(member)
    taken = taken + 1
    if lane_moved or full then break end -- the member that is next in its lane may come before the rest
  end
end
if not none_due and #claims < count then more = true end
if unparked and redis.call('XLEN', parked) == 0 then redis.call('DEL', parked) end

local rooms = {} -- how many new members of a lane can be active, by ordering key
local n_parked = 0

-- Return when a new entry may be delivered: nil for now, ms, or inf behind others of its key.
local function due_at(id, options)
  local at = options.at > now and number(options.at) or nil
  local key = options.key
  if not key then return at end
  local room = rooms[key] or room_in_lane(key)
  if room == 0 and not rooms[key] and first_in_lane(key) == id then room = 1 end -- another program moved the group back
  rooms[key] = math.max(0, room - 1)
  return room == 0 and 'inf' or at
end

-- Park a new entry; return false if it has to stay pending. It is parked already, or a later one is, if another program
-- has moved the group back.
local function park(id, options)
  local terms = options and (options.at > 0 and number(options.at) or '') .. '|' .. (options.key or '') or '|'
  local added = redis.pcall('XADD', parked, id, 'k', terms)
  return type(added) == 'string' or redis.call('XRANGE', parked, id, id)[1] ~= nil
end

local read_bytes, read_entries, last_new = 0, 0, nil -- last_new: the id of the last entry that was read
local run, grown = 0, 0 -- how many entries in a row were parked, and how many more are read for that

count = math.min(count, MOST_NEW)
-- First entries are read to be leased; then others are read ahead, behind a backlog: none of these is leased, but each
-- ordering key that comes there takes its turn from now on.
for _, ahead in ipairs({ false, true }) do
  local entries_before, bytes_before = read_entries, read_bytes
  local room = ahead and ROOM_AHEAD or ROOM
  if ahead then
    local busy = full or #claims + #fresh >= math.min(tonumber(ARGV[3]), MOST_DUE)
    if not (busy and has_lanes and redis.call('ZCARD', queue) > 0) then break end
    if redis.call('XLEN', parked) == 0 then -- keys compete only if the next entry is behind others of its key
      local from = after(last_new or (last_read()))
      local entry = from and redis.call('XRANGE', stream, from, '+', 'COUNT', 1)[1]
      local options = entry and options_of(entry[2], 1)
      if not (options and options.key and room_in_lane(options.key) == 0) then break end
    end
  end
  -- What is due again comes before new entries, even if that takes a step.
  while ahead and n_parked < MOST_AHEAD or not ahead and none_due and not full and #claims + #fresh < count do
    local wanted = ahead and MOST_AHEAD - n_parked or count - #claims - #fresh + grown
    if read_entries == entries_before then
      wanted = math.min(wanted, FIRST)
    elseif read_bytes > bytes_before then
      local entries, bytes = read_entries - entries_before, read_bytes - bytes_before
      wanted = math.min(wanted, math.floor((room - bytes) * entries / bytes))
    end
    if wanted < 1 then
      more = more or not ahead
      break
    end
    local streams = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', wanted, 'STREAMS', stream, '>')
    local entries = streams and streams[1] and streams[1][2] or {}
    local scores, late, aside, lane_members, again_in = {}, {}, {}, {}, {}
    for _, entry in ipairs(entries) do
      local id, fields = entry[1], entry[2]
      read_bytes, read_entries, last_new = read_bytes + bytes_of(fields), read_entries + 1, id
      local options = options_of(fields, 1)
      local at = options and due_at(id, options)
      if options and options.key then
        lane_members[#lane_members + 1] = 0
        lane_members[#lane_members + 1] = lane_member(options.key, id)
      end
      local leases = not at and not ahead and #claims + #fresh < count
      local content = leases and in_reply(fields)
      if not (at or leases) then at = get_lanes().next_turn() end
      if content then
        note_options(id, options)
        scores[#scores + 1] = lease_ends
        scores[#scores + 1] = id
        entry[2] = content
        fresh[#fresh + 1] = entry
      elseif leases then
        note_options(id, options)
        late[#late + 1] = id
      elseif park(id, options) then
        aside[#aside + 1] = id
        if at ~= 'inf' then
          scores[#scores + 1] = at
          scores[#scores + 1] = id
        end
      else
        keep_waiting(id, at, options)
        if at == 'inf' then again_in[options.key] = true end
      end
    end
    if #aside > 0 then redis.call('XACK', stream, group, unpack(aside)) end
    if #lane_members > 0 then enter_lanes(unpack(lane_members)) end
    for n, id in ipairs(late) do
      put_off(id)
      redis.call('ZADD', due, number(now - #late + n), id) -- a millisecond apart, to keep their order
      must_notify = true
    end
    for first = 1, #scores, CHUNK do
      redis.call('ZADD', due, unpack(scores, first, math.min(first + CHUNK - 1, #scores)))
    end
    for key in pairs(again_in) do -- the active one was read again, and waits now, if another program moved the group back
      if #get_lanes().look(key) == 0 then fill_lane(key) end
    end
    n_parked = n_parked + #aside
    -- Behind a run of parked entries many are read at once, else no more than are wanted.
    run = #aside == #entries and run + #aside or 0
    grown = run >= RUN and math.min(run, MOST_PARKED - n_parked) or 0
    if #entries < wanted then break end
    if n_parked >= MOST_PARKED and not ahead then
      more = true
      break
    end
  end
end

return finished()
