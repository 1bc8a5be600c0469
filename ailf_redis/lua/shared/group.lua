-- What the transitions of a group share; loaded before each of them (see scripts.py).
--
-- KEYS[1] stream   the stream with its groups
-- KEYS[2] due      sorted set: member -> ms when it may be delivered (again): the end of its lease, or of its delay; a
--                  turn has a fraction (see lane.lua). A parked entry behind others of its ordering key has none, a
--                  redriven one inf
-- KEYS[3] notes    hash, delivery metadata: "<member>:f" deliveries that don't count, ":e" last error, ":k" ordering
--                  key, ":m" max deliveries of its own; of the group "paused", "base" what is added to delivery counts
--                  in receipts, "cursor" and "sweep" where and when the search for entries that other programs left
--                  pending continues, "stale" that what is pending is from before a reset of the group, "anew" where a
--                  step after a reset continues with redriven ones, "lanes" that there was a message with an ordering
--                  key, "concurrency" how many members of a lane may be active, and how many ever might
-- KEYS[4] dead     stream of dead letters
-- KEYS[5] bell     the wake-up stream: one entry, replaced to notify the consumers that wait
-- KEYS[6] again    stream: dead letters that were redriven, with a group "g" of its own
-- KEYS[7] alive    sorted set: consumer -> ms until which it counts as alive
-- KEYS[8] queue    sorted set, ordered by member: the unsettled entries with an ordering key, lane by lane
-- KEYS[9] parked   stream: the entries that were read and not yet delivered, under their own ids; field "k": "<ms when
--                  it may be delivered>|<ordering key>". They aren't pending: the server's pending list needs 183 bytes
--                  for an entry, and this about 20
-- ARGV[1] group
-- returns nothing by itself; the server's error reply if the stream's key holds another type
-- writes  without TTL: KEYS[1], KEYS[4], KEYS[6] are data; KEYS[2], KEYS[7], KEYS[8], KEYS[9] vanish with their last
--         member, KEYS[3] with the group; KEYS[5] with a TTL of 10 s
-- bound   PAGE messages of each kind, the fields of an entry that becomes a dead letter, and MOST_DEAD_LETTERS that are
--         rewritten
--
-- A member is the id of an entry of KEYS[1], or "~" and the id of one of KEYS[6].

local stream, due, notes, dead, bell, again, alive, queue, parked = unpack(KEYS)
local group = ARGV[1]
local WAITING = 'ailf.waiting' -- owns entries that no consumer has; no consumer has this name, so no receipt matches it
local must_notify = false
local lane_moved = false -- whether a member of a lane was made due or moved back, so that other members are due first

local probe = redis.pcall('XPENDING', stream, group, '-', '+', 1)
local missing = probe.err and string.find(tostring(probe.err), 'NOGROUP', 1, true) -- tostring: for fakeredis
if probe.err and not missing then return probe end
-- The notes of the group itself are read once, as each further command takes as long as reading all of them.
local own_notes = redis.call('HMGET', notes, 'base', 'stale', 'lanes', 'concurrency', 'paused', 'watch', 'anew',
  'sweep', 'cursor')
local base, stale, has_lanes, concurrency, paused, watch, anew, sweep = unpack(own_notes)
base = math.min(tonumber(base or 0) or 0, LARGEST)
local width, most_active -- both nil if it is one and always was
if concurrency then width, most_active = read_concurrency(concurrency) end

-- Return where a member is stored: the key, the group in it, the id.
local function locate(member)
  if string.byte(member) == 126 then return again, 'g', string.sub(member, 2) end
  return stream, group, member
end

-- Return a member's row of the pending list, { id, consumer, ms since delivered, times delivered }, or nil.
local function pending_row(member)
  local key, name, id = locate(member)
  local rows = redis.pcall('XPENDING', key, name, id, id, 1)
  return not rows.err and rows[1] or nil
end

local function fields_of(member)
  local key, _, id = locate(member)
  local entry = redis.call('XRANGE', key, id, id)[1]
  return entry and entry[2]
end

-- Return the index of the first field of the message itself: a redriven member has its origin before it. An entry of
-- another program may have a field of that name, and isn't redriven.
local function first_field(member, fields)
  return string.byte(member) == 126 and fields[1] == 'ailf.origin' and 3 or 1
end

-- --- lanes: the members of one ordering key

local function first_in_lane(key, from) return first_of_lane(queue, key, from) end

local function parked_terms(member) return terms_of_parked(parked, member) end

local lanes -- the functions of the lanes

local function get_lanes()
  lanes = lanes or make_lanes(due, queue, width or 1, most_active or 1, function(member)
    local at = parked_terms(member)
    if at then return at end
    local fields = fields_of(member)
    local options = fields and options_of(fields, first_field(member, fields))
    return options and options.at or 0
  end)
  return lanes
end

-- Return how many new members of a lane can be active at once: none if some wait in it already.
local function room_in_lane(key)
  if not width then return first_in_lane(key) and 0 or 1 end
  local active, rest = get_lanes().look(key)
  return #rest > 0 and 0 or math.max(0, width - #active)
end

local function fill_lane(key)
  if get_lanes().fill(key) then
    must_notify, lane_moved = true, true
  end
end

-- Add members to their lanes, each after a 0.
local function enter_lanes(...)
  redis.call('ZADD', queue, ...)
  if not has_lanes then redis.call('HSET', notes, 'lanes', 1) end
  has_lanes = true
end

-- --- the end of a message in the group

-- Remove what the helper keys hold of a member; release the next one of its lane.
local function remove_state(member)
  local behind = redis.call('ZSCORE', due, member) == 'inf'
  redis.call('ZREM', due, member)
  local key = redis.call('HGET', notes, member .. ':k')
  redis.call('HDEL', notes, member .. ':f', member .. ':e', member .. ':k', member .. ':m')
  if key then
    redis.call('ZREM', queue, lane_member(key, member))
    if not behind then fill_lane(key) end
  end
end

local function finish(member)
  local key, name, id = locate(member)
  redis.call('XACK', key, name, id)
  if key == again then
    redis.call('XDEL', again, id)
    if redis.call('XLEN', again) == 0 then redis.call('DEL', again) end
  end
  remove_state(member)
end

local MOST_FIELDS = 2000 -- names and values; Lua can give a command no more than about 8000 arguments

-- Return the fields from `first` on, few enough for a command. More of them become one field, "ailf.packed": each with
-- its length before it. A foreign entry (`first` is 1) with a field of that name is packed too, so that only what was
-- packed here is unpacked.
local function packed(fields, first)
  local unambiguous = first > 1 or fields[first] ~= 'ailf.packed'
  if unambiguous and #fields - first < MOST_FIELDS then return unpack(fields, first) end
  local texts = {}
  for at = first, #fields do texts[#texts + 1] = #fields[at] .. ':' .. fields[at] end
  return 'ailf.packed', table.concat(texts)
end

local MOST_DEAD_LETTERS = 1000 -- how many are rewritten at most
local MOST_ARGUMENTS = 7000

-- Add a dead letter. After an entry of the largest id, which another program added, the server adds none. Then all are
-- rewritten, that one under a new id.
local function add_dead_letter(...)
  local added = redis.pcall('XADD', dead, '*', ...)
  if type(added) == 'string' then return end
  local info = redis.pcall('XINFO', 'STREAM', dead)
  if info.err or map(info)['last-generated-id'] ~= LAST or redis.call('XLEN', dead) > MOST_DEAD_LETTERS then
    redis.call('XADD', dead, '*', ...) -- which raises the error
  end
  local entries = redis.call('XRANGE', dead, '-', '+')
  redis.call('DEL', dead)
  for _, entry in ipairs(entries) do
    local id, fields = entry[1] ~= LAST and entry[1] or '*', entry[2]
    if #fields < MOST_ARGUMENTS then
      redis.call('XADD', dead, id, unpack(fields))
    else
      redis.call('XADD', dead, id, packed(fields, 1))
    end
  end
  redis.call('XADD', dead, '*', ...)
end

local function origin_of(member, fields)
  return first_field(member, fields) == 3 and fields[2] or member
end

-- Make a member a dead letter. Return the id of its original entry, or nil if its entry was removed, so that there is
-- nothing to keep.
local function move_to_dead_letters(member, attempt, reason, error_text)
  local fields = fields_of(member)
  local origin = fields and origin_of(member, fields)
  if fields then
    add_dead_letter('ailf.origin', origin, 'ailf.reason', reason, 'ailf.error', error_text, 'ailf.attempts',
      number(attempt), packed(fields, first_field(member, fields)))
  end
  finish(member)
  return origin
end

-- --- waiting members

-- Take a member from its consumer until `at` (ms), which invalidates its receipt.
local function set_waiting(member, at)
  local key, name, id = locate(member)
  if not fields_of(member) then -- its entry was removed: there is nothing to deliver
    finish(member)
    return
  end
  redis.call('XCLAIM', key, name, WAITING, 0, id, 'JUSTID')
  redis.call('ZADD', due, at, member)
end

-- Return how many earlier deliveries of a member count. Another program may have set the server's count to anything.
local function attempts(row, uncounted) return math.max(0, row[4] - (tonumber(uncounted) or 0)) end

-- Let one delivery of a member not count.
local function uncount(member) redis.call('HINCRBY', notes, member .. ':f', 1) end

-- Note what a pending member needs of its options later.
local function note_options(member, options)
  if not options then return end
  if options.most then redis.call('HSET', notes, member .. ':m', options.most) end
  if options.key then redis.call('HSET', notes, member .. ':k', options.key) end
end

-- Let a pending member that was never delivered wait until `at` (ms), or inf.
local function keep_waiting(member, at, options)
  note_options(member, options)
  uncount(member)
  set_waiting(member, at)
end

-- Let a redriven member wait for its turn, its time or its lane; its deliveries don't count.
local function admit_redriven(member, options)
  local at, key = options and options.at or 0, options and options.key
  note_options(member, options)
  local behind = key and room_in_lane(key) == 0
  if key then enter_lanes(0, lane_member(key, member)) end
  local waits = behind and 'inf' or at > now and number(at)
  redis.call('ZADD', due, waits or key and get_lanes().next_turn() or number(now), member)
end

local PAGE = 100 -- messages of each kind that a step handles, besides those that it is given or returns

-- Wake the consumers that wait, if something has come back to the group.
local function notify()
  if must_notify then ring(bell) end
end
