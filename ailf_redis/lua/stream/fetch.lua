-- Lease entries of a group to a consumer: those due again first, then new ones in id order.
--
-- ARGV    group, consumer, count, lease_ms, alive_ms, max_deliveries; and how many bytes an entry may have, where that is
--         more than HUGE
-- returns { what is due again: { member, fields, grant, attempt }…, new entries: { id, fields }…, the grant of each of
--         these, ids of the dead, reset, last id ('' where there may be more at once), last ring, next due in ms or -1 };
--         instead of fields that are more than an entry may have, how many bytes they are
-- bound   ROUNDS looks for up to `count` entries each, ROUNDS dead consumers, and a page of what others left pending
--
-- Another program may have added entries of any size. What one reply returns has ROOM, or is a single entry, so that no
-- entry fails because of others.

local consumer = ARGV[2]
local count, lease, alive_for, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local limit = number(now + lease)
local now_text = number(now)
local CHUNK = 1000 -- how many arguments one command gets
local ROUNDS = 8 -- a bound on what one step does: the rest is for the next, at once
local ROOM, HUGE = 32 * 1024 * 1024, 63 * 1024 * 1024 -- bytes; see FOREIGN in resp.py
local huge = math.max(HUGE, tonumber(ARGV[7]) or 0)
local claims, fresh, buried, reset, more = {}, {}, {}, 0, false
local sent, full = 0, false -- bytes of entries in the reply, and whether the rest is for the next one

if missing then
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  restart()
  redis.call('HDEL', notes, 'paused')
  reset = 1
end
local first_grant = 1 + base -- of what is delivered for the first time

local function rests() -- nothing more to do now: what waiting needs to know
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  local bells = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)[1]
  return last and last[1] or '0-0', bells and bells[1] or '0-0'
end

redis.call('ZADD', alive, number(now + alive_for), consumer)
-- The dead: who has not given a sign of life in time.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now_text, 'LIMIT', 0, ROUNDS)) do
  if not give_back(name, false) then more = true end
end

local paused, sweep, anew = unpack(redis.call('HMGET', notes, 'paused', 'sweep', 'anew'))
if anew and not take_up(anew) then -- nothing is leased before all of it is taken up, which ends leases
  ring()
  return { claims, fresh, first_grant, buried, reset, '', '', -1 }
end

if paused then
  local last, bells = rests()
  ring()
  return { claims, fresh, first_grant, buried, reset, last, bells, -1 }
end

-- What other programs left pending: one of all consumers looks, once per lease, a page at a time.
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
    redis.call('HSET', notes, 'sweep', limit)
  end
end

-- What the reply says of an entry: its fields, or its size where no reply has room for them; nil where this one hasn't.
local function shown(fields)
  local bytes = bytes_of(fields)
  local said = bytes <= huge and fields or bytes
  if said == bytes then bytes = AROUND end
  if full or sent > 0 and sent + bytes > ROOM then
    full, more = true, true
    return nil
  end
  sent = sent + bytes
  return said
end

-- Let the next fetch lease what was just leased, as though this one hadn't.
local function put_off(member)
  local key, name, id = home(member)
  forgive(member)
  redis.call('XCLAIM', key, name, WAITING, 0, id, 'JUSTID')
end

local function take(member)
  local row = pending(member)
  if not row then -- somebody acknowledged it without us
    forget(member)
    return
  end
  local forgiven, own = unpack(redis.call('HMGET', notes, member .. ':f', member .. ':m'))
  local attempt = attempts(row, forgiven)
  if attempt >= (tonumber(own) or most) then
    local why = redis.call('HGET', notes, member .. ':e') or 'every lease ended unsettled'
    buried[#buried + 1] = bury(member, attempt, 'max_deliveries', why)
    return
  end
  local key, name, id = home(member)
  local entry = redis.call('XCLAIM', key, name, consumer, 0, id)[1]
  local said = entry and entry[2] and shown(entry[2])
  if said then
    redis.call('ZADD', due, limit, member)
    claims[#claims + 1] = { member, said, row[4] + 1 + base, attempt + 1 }
  elseif full then
    put_off(member)
  else -- deleted from the stream while it was pending
    finish(member)
  end
end

local function full_or(done, round) -- whether to stop, and if so, whether there may be more
  if round > ROUNDS and not done then more = true end
  return #claims + #fresh >= count or done or full or round > ROUNDS
end

local round, none = 0, false
repeat
  local ids = redis.call('ZRANGEBYSCORE', due, '-inf', now_text, 'LIMIT', 0, count - #claims)
  turned = false
  for _, member in ipairs(ids) do
    take(member)
    if turned or full then break end -- to whom may be before the rest
  end
  round, none = round + 1, #ids == 0
until full_or(none, round)

round = 0
while none and #claims + #fresh < count do -- what is due again comes first, be it in the next step
  local wanted = count - #claims - #fresh
  local found = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', wanted, 'STREAMS', stream, '>')
  local entries = found and found[1] and found[1][2] or {}
  local leases, late = {}, {}
  for _, entry in ipairs(entries) do
    local how = how_of(entry[2], 1)
    if not (how and hold_back(entry[1], how)) then
      local said = shown(entry[2])
      if said then
        leases[#leases + 1] = limit
        leases[#leases + 1] = entry[1]
        entry[2] = said
        fresh[#fresh + 1] = entry
      else
        late[#late + 1] = entry[1]
      end
    end
  end
  for n, id in ipairs(late) do
    put_off(id)
    redis.call('ZADD', due, number(now - #late + n), id) -- in their order
  end
  for first = 1, #leases, CHUNK do redis.call('ZADD', due, unpack(leases, first, math.min(first + CHUNK - 1, #leases))) end
  round = round + 1
  if full_or(#entries < wanted, round) then break end
end

ring()
if more or #claims + #fresh + #buried > 0 then return { claims, fresh, first_grant, buried, reset, '', '', -1 } end
local last, bells = rests()
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')[2]
return { claims, fresh, first_grant, buried, reset, last, bells, first and first ~= 'inf' and math.min(LATEST, math.max(0, first - now)) or -1 }
