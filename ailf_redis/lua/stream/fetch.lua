-- Lease entries of a group to a consumer: first those that are due again, then new ones in id order.
--
-- ARGV    group, consumer, count, lease_ms, alive_ms, max_deliveries; the most bytes of an entry, if that is above
--         HUGE, else '' or nothing; and of a caller that waits: its waiter, how many other callers wait with it, and for
--         how many ms they wait
-- returns { due again: { member, fields, grant, attempt }…, new entries: { id, fields }…, the grant of each of these,
--         ids of new dead letters, reset, last id ('' if there may be more at once), last id of the wake-up stream, ms
--         until the next is due or -1, and how a waiter goes on (see watch.lua) }; instead of fields that are too
--         large, their size in bytes
-- bound   ROUNDS rounds of up to `count` entries each, ROUNDS dead consumers, and a page of what others left pending
--
-- Another program may have added entries of any size. The entries of one reply fit in ROOM, or the reply has a single
-- one, so that no entry fails because of others.

local consumer = ARGV[2]
local count, lease, alive_for, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local lease_ends = number(now + lease)
local now_text = number(now)
local CHUNK = 1000 -- how many arguments one command gets
local ROUNDS = 8 -- bounds the work of one step; the next fetch does the rest at once
local ROOM, HUGE = 32 * 1024 * 1024, 63 * 1024 * 1024 -- bytes; see FOREIGN in resp.py
local huge = math.max(HUGE, tonumber(ARGV[7]) or 0)
local claims, fresh, dead_ids, reset, more = {}, {}, {}, 0, false
local sent, full = 0, false -- bytes of entries in the reply, and whether no other entry fits

if missing then
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  reset_group()
  redis.call('HDEL', notes, 'paused')
  reset = 1
end
local first_grant = 1 + base -- the grant of a first delivery

local paused, sweep, anew, watch = unpack(redis.call('HMGET', notes, 'paused', 'sweep', 'anew', 'watch'))

-- Return the reply of the script, with what the caller needs to wait.
local function finished()
  notify()
  local leased = #claims + #fresh
  local last, rung, wait, state = '', '', -1, AGAIN
  if ARGV[8] then
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
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now_text, 'LIMIT', 0, ROUNDS)) do
  if not release_all(name, false) then more = true end
end

if anew and not take_up_redriven(anew) then -- it ends leases: nothing is leased before all is taken up
  more = true
  return finished()
end
if paused then return finished() end

-- Find what other programs left pending: once per lease for the whole group, a page at a time.
if now >= (tonumber(sweep) or 0) then
  local from = redis.call('HGET', notes, 'cursor')
  local rows = from and redis.pcall('XPENDING', stream, group, 'IDLE', lease, from, '+', PAGE)
  if not rows or rows.err then rows = redis.call('XPENDING', stream, group, 'IDLE', lease, '-', '+', PAGE) end
  for _, row in ipairs(rows) do redis.call('ZADD', due, 'NX', now_text, row[1]) end
  local rest = #rows == PAGE and after(rows[PAGE][1])
  if rest then
    redis.call('HSET', notes, 'cursor', rest)
    more = true
  else
    redis.call('HDEL', notes, 'cursor')
    redis.call('HSET', notes, 'sweep', lease_ends)
  end
end

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

local function take(member)
  local row = pending_row(member)
  if not row then -- another program acknowledged it
    remove_state(member)
    return
  end
  local uncounted, own_most = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
  local attempt = attempts(row, uncounted)
  if attempt >= (tonumber(own_most) or most) then
    local error_text = redis.call('HGET', notes, member .. ':e') or 'every lease ended unsettled'
    dead_ids[#dead_ids + 1] = move_to_dead_letters(member, attempt, 'max_deliveries', error_text)
    return
  end
  local key, name, id = locate(member)
  local entry = redis.call('XCLAIM', key, name, consumer, 0, id)[1]
  local content = entry and entry[2] and in_reply(entry[2])
  if content then
    redis.call('ZADD', due, lease_ends, member)
    claims[#claims + 1] = { member, content, row[4] + 1 + base, attempt + 1 }
  elseif full then
    put_off(member)
  else -- removed from the stream while it was pending
    finish(member)
  end
end

-- Tell whether to stop after a round; note whether there may be more. `none_left` tells whether this source is empty.
local function stops(none_left, round)
  if round > ROUNDS and not none_left then more = true end
  return #claims + #fresh >= count or none_left or full or round > ROUNDS
end

local round, none_due = 0, false
repeat
  local members = redis.call('ZRANGEBYSCORE', due, '-inf', now_text, 'LIMIT', 0, count - #claims)
  lane_moved = false
  for _, member in ipairs(members) do
    take(member)
    if lane_moved or full then break end -- the member that is next in its lane may come before the rest
  end
  round, none_due = round + 1, #members == 0
until stops(none_due, round)

round = 0
while none_due and #claims + #fresh < count do -- what is due again comes first, even if that takes another step
  local wanted = count - #claims - #fresh
  local streams = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', wanted, 'STREAMS', stream, '>')
  local entries = streams and streams[1] and streams[1][2] or {}
  local leases, late = {}, {}
  for _, entry in ipairs(entries) do
    local options = options_of(entry[2], 1)
    if not (options and defer(entry[1], options)) then
      local content = in_reply(entry[2])
      if content then
        leases[#leases + 1] = lease_ends
        leases[#leases + 1] = entry[1]
        entry[2] = content
        fresh[#fresh + 1] = entry
      else
        late[#late + 1] = entry[1]
      end
    end
  end
  for n, id in ipairs(late) do
    put_off(id)
    redis.call('ZADD', due, number(now - #late + n), id) -- a millisecond apart, to keep their order
  end
  for first = 1, #leases, CHUNK do
    redis.call('ZADD', due, unpack(leases, first, math.min(first + CHUNK - 1, #leases)))
  end
  round = round + 1
  if stops(#entries < wanted, round) then break end
end

return finished()
