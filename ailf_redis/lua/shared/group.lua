-- What the transitions of a group share; it stands before the text of each of them (see scripts.py).
--
-- KEYS[1] stream   the stream with its groups
-- KEYS[2] due      sorted set: member -> ms when it may be delivered (again): the end of its lease, or of its delay;
--                  inf: it waits for its turn
-- KEYS[3] notes    hash: "<member>:f" deliveries that don't count, ":e" last error, ":k" ordering key,
--                  ":m" max deliveries of its own; "base" what is added to delivery counts, "paused",
--                  "cursor" and "sweep" where and when to look for entries that other programs left pending,
--                  "anew" where to go on with what was put back before the group began anew
-- KEYS[4] dead     stream of dead letters
-- KEYS[5] bell     stream of one entry, replaced in order to wake who waits
-- KEYS[6] again    stream: dead letters that were put back, with a group "g" of its own
-- KEYS[7] alive    sorted set: consumer -> ms until which it counts as alive
-- KEYS[8] queue    sorted set, ordered by member: the unsettled entries that have an ordering key, key by key
-- ARGV[1] group
-- returns nothing by itself; an error reply of the server's where the stream's key holds something else
-- writes  without TTL: KEYS[1], KEYS[4], KEYS[6] are data; KEYS[2], KEYS[7], KEYS[8] vanish with their last member, KEYS[3]
--         with the group; KEYS[5] with a TTL of 10 s
-- bound   PAGE messages of each kind, the fields of an entry that becomes a dead letter, and MOST_LETTERS that are written anew
--
-- A member is the id of an entry of KEYS[1], or "~" and the id of one of KEYS[6].

local stream, due, notes, dead, bell, again, alive, queue = unpack(KEYS)
local group = ARGV[1]
local LATEST = 9007199254740992 -- ms: the last time that a number keeps
local WAITING = 'ailf.waiting' -- owns what nobody has: no consumer has this name, so no receipt proves anything
local rung = false
local turned = false -- whether a turn was passed, so that what is due has changed

local probe = redis.pcall('XPENDING', stream, group, '-', '+', 1)
local missing = probe.err and string.find(tostring(probe.err), 'NOGROUP', 1, true) -- tostring: for fakeredis
if probe.err and not missing then return probe end
local base = math.min(tonumber(redis.call('HGET', notes, 'base') or 0) or 0, LATEST)

-- Where a member lives: the key, the group in it, the id.
local function home(member)
  if string.byte(member) == 126 then return again, 'g', string.sub(member, 2) end
  return stream, group, member
end

-- A row of a pending list: { id, consumer, ms since delivered, times delivered }, or nil.
local function pending(member)
  local key, name, id = home(member)
  local rows = redis.pcall('XPENDING', key, name, id, id, 1)
  return not rows.err and rows[1] or nil
end

local function fields_of(member)
  local key, _, id = home(member)
  local entry = redis.call('XRANGE', key, id, id)[1]
  return entry and entry[2]
end

-- Where the fields of a member's own begin: what was put back has its origin first. A raw entry may say so, too.
local function begin_of(member, fields)
  return string.byte(member) == 126 and fields[1] == 'ailf.origin' and 3 or 1
end

-- What an entry's producer asked for; its fields say so first: "ailf.how", "<at ms>|<max deliveries>|<ordering key>".
local function how_of(fields, first)
  if fields[first] ~= 'ailf.how' then return nil end
  local at, most, key = string.match(fields[first + 1], '^(%d*)|(%d*)|(.*)$')
  return { at = math.min(tonumber(at) or 0, LATEST), most = tonumber(most), key = key ~= '' and key }
end

-- --- turns of ordering keys

local function first_of(key)
  local from = lane(key)
  local found = redis.call('ZRANGEBYLEX', queue, '[' .. from, '(' .. from .. '\255', 'LIMIT', 0, 1)[1]
  if not found then return nil end
  local tilde, ms, seq = string.match(short(string.sub(found, #from + 1)), '^(~?)0*(%d+)%-0*(%d+)$')
  if not tilde then -- another program's
    redis.call('ZREM', queue, found)
    return nil
  end
  return tilde .. ms .. '-' .. seq
end

local function pass_turn(key)
  local member = first_of(key)
  if not member then return end
  local fields = fields_of(member)
  local how = fields and how_of(fields, begin_of(member, fields))
  redis.call('ZADD', due, number(math.max(now, how and how.at or 0)), member)
  rung, turned = true, true
end

-- --- ends

local function forget(member)
  local waited = redis.call('ZSCORE', due, member) == 'inf'
  redis.call('ZREM', due, member)
  local key = redis.call('HGET', notes, member .. ':k')
  redis.call('HDEL', notes, member .. ':f', member .. ':e', member .. ':k', member .. ':m')
  if key then
    redis.call('ZREM', queue, place(key, member))
    if not waited then pass_turn(key) end
  end
end

local function finish(member)
  local key, name, id = home(member)
  redis.call('XACK', key, name, id)
  if key == again then
    redis.call('XDEL', again, id)
    if redis.call('XLEN', again) == 0 then redis.call('DEL', again) end
  end
  forget(member)
end

local MOST_FIELDS = 2000 -- names and values; Lua can give a command no more than about 8000 arguments

-- The fields from one on, few enough for a command: more become one, "ailf.packed", of each with its length before it.
-- A raw entry (first is 1) that has a field of that name is packed too, so that only what was packed here is unpacked.
local function packed(fields, first)
  local taken_as_it_is = first > 1 or fields[first] ~= 'ailf.packed'
  if taken_as_it_is and #fields - first < MOST_FIELDS then return unpack(fields, first) end
  local parts = {}
  for at = first, #fields do parts[#parts + 1] = #fields[at] .. ':' .. fields[at] end
  return 'ailf.packed', table.concat(parts)
end

local MOST_LETTERS = 1000 -- how many dead letters are written anew at most
local MOST_ARGUMENTS = 7000

-- Add a dead letter. Behind an entry of the largest id, which another program added, the server adds none: then all of
-- them are written anew, that one under an id of now.
local function add_letter(...)
  local added = redis.pcall('XADD', dead, '*', ...)
  if type(added) == 'string' then return end
  local last = redis.pcall('XINFO', 'STREAM', dead)
  if last.err or map(last)['last-generated-id'] ~= LAST or redis.call('XLEN', dead) > MOST_LETTERS then
    redis.call('XADD', dead, '*', ...) -- which raises the error
  end
  local letters = redis.call('XRANGE', dead, '-', '+')
  redis.call('DEL', dead)
  for _, letter in ipairs(letters) do
    local id, fields = letter[1] ~= LAST and letter[1] or '*', letter[2]
    if #fields < MOST_ARGUMENTS then
      redis.call('XADD', dead, id, unpack(fields))
    else
      redis.call('XADD', dead, id, packed(fields, 1))
    end
  end
  redis.call('XADD', dead, '*', ...)
end

local function origin_of(member, fields)
  return begin_of(member, fields) == 3 and fields[2] or member
end

-- Make it a dead letter; return the id that its entry had, or nil where the entry has gone, so that there is nothing to
-- keep.
local function bury(member, attempt, reason, why)
  local fields = fields_of(member)
  local origin = fields and origin_of(member, fields)
  if fields then
    add_letter('ailf.origin', origin, 'ailf.reason', reason, 'ailf.error', why, 'ailf.attempts', number(attempt),
      packed(fields, begin_of(member, fields)))
  end
  finish(member)
  return origin
end

-- --- waits

-- Take it from whoever has it, until so many ms; nobody's receipt holds any more.
local function park(member, at)
  local key, name, id = home(member)
  if not fields_of(member) then -- its entry has gone, so it is for nobody
    finish(member)
    return
  end
  redis.call('XCLAIM', key, name, WAITING, 0, id, 'JUSTID')
  redis.call('ZADD', due, at, member)
end

-- How often it was delivered before, as far as that counts. Another program may have set the count to anything.
local function attempts(row, forgiven) return math.max(0, row[4] - (tonumber(forgiven) or 0)) end

local function forgive(member) redis.call('HINCRBY', notes, member .. ':f', 1) end

-- Let an entry that was just read wait for its turn or its time; return false where neither keeps it.
local function hold_back(member, how)
  if how.most then redis.call('HSET', notes, member .. ':m', how.most) end
  local at = how.at > now and number(how.at)
  if how.key then
    if first_of(how.key) then at = 'inf' end
    redis.call('ZADD', queue, 0, place(how.key, member))
    redis.call('HSET', notes, member .. ':k', how.key)
  end
  if not at then return false end
  forgive(member)
  park(member, at)
  return true
end

local PAGE = 100

-- Give back what a consumer has, at most PAGE messages of each kind, and forget the consumer when nothing is left;
-- return whether nothing is. A delivery that is given back counts, unless it is forgiven.
local function give_back(consumer, forgiven)
  local left = false
  if consumer == WAITING then -- another program's sign of life: forgetting it would drop what waits
    redis.call('ZREM', alive, consumer)
    return true
  end
  for prefix, place_of in pairs({ [''] = { stream, group }, ['~'] = { again, 'g' } }) do
    local key, name = unpack(place_of)
    local rows = redis.pcall('XPENDING', key, name, '-', '+', PAGE, consumer)
    if not rows.err then
      for _, row in ipairs(rows) do
        local member = prefix .. row[1]
        local ends = tonumber(redis.call('ZSCORE', due, member) or now)
        if forgiven and ends > now then forgive(member) end
        park(member, number(math.min(ends, now)))
        rung = true
      end
      left = left or #rows == PAGE
      if #rows < PAGE then redis.call('XGROUP', 'DELCONSUMER', key, name, consumer) end
    end
  end
  if not left then redis.call('ZREM', alive, consumer) end
  return not left
end

-- Where a group has begun anew, take up a page of what was put back before: it is for everybody, as though it had not
-- been delivered since. Return whether all of it is.
local function take_up(from)
  local rows = redis.pcall('XPENDING', again, 'g', from, '+', PAGE)
  if rows.err then rows = redis.pcall('XPENDING', again, 'g', '-', '+', PAGE) end -- the cursor may be no id
  if rows.err then rows = {} end
  for _, row in ipairs(rows) do
    local member = '~' .. row[1]
    local fields = fields_of(member)
    local how = fields and how_of(fields, begin_of(member, fields))
    redis.call('HSET', notes, member .. ':f', row[4])
    redis.call('XCLAIM', again, 'g', WAITING, 0, row[1], 'JUSTID')
    redis.call('ZADD', due, number(now), member)
    if how and how.most then redis.call('HSET', notes, member .. ':m', how.most) end
    if how and how.key then
      local first = first_of(how.key)
      if first and first ~= member then redis.call('ZADD', due, 'inf', member) end
      redis.call('ZADD', queue, 0, place(how.key, member))
      redis.call('HSET', notes, member .. ':k', how.key)
    end
  end
  local rest = #rows == PAGE and after(rows[PAGE][1])
  if rest then
    redis.call('HSET', notes, 'anew', rest)
  else
    redis.call('HDEL', notes, 'anew')
  end
  rung = true
  return not rest
end

-- Begin anew: nothing is out but what was put back, and no older receipt is ever worth anything: an entry is delivered
-- less often than microseconds pass; where the clock was set back, less often than 4096 times.
local function restart()
  redis.call('DEL', due, queue)
  local paused = redis.call('HGET', notes, 'paused')
  redis.call('DEL', notes)
  base = now_us > base and now_us or base + 4096
  redis.call('HSET', notes, 'base', number(base))
  if paused then redis.call('HSET', notes, 'paused', paused) end
  take_up('-')
end

local function ring()
  if not rung then return end
  if type(redis.pcall('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)) ~= 'string' then -- there is an entry of the largest id
    redis.call('DEL', bell)
    redis.call('XADD', bell, '*', 'r', 1)
  end
  redis.call('PEXPIRE', bell, 10000)
end
