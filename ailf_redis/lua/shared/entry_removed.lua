-- What a group does about an entry that is removed from the stream; loaded before the transitions that remove entries.
--
-- returns nothing by itself
-- writes  the helper keys of the group (see group.lua)

-- Return when a member that is the first of its lane may be delivered (ms).
local function time_of(stream, parked, member)
  local at = terms_of_parked(parked, member)
  if at then return at end
  if not is_id(member) then return 0 end -- redriven: its time has passed
  local entry = redis.call('XRANGE', stream, member, member)[1]
  local options = entry and options_of(entry[2], 1)
  return options and options.at or 0
end

-- A leased entry stays pending, as its consumer may still settle it. One that waits, parked or pending, is forgotten;
-- if it was active in its lane, the next one is due.
local function on_entry_removed(stream, group, id, due, bell, notes, queue, parked)
  local waits = redis.call('XRANGE', parked, id, id)[1]
  local score = redis.call('ZSCORE', due, id)
  local key
  if waits then
    key = string.match(waits[2][2], '^%d*|(.+)$')
    redis.call('XDEL', parked, id)
    if redis.call('XLEN', parked) == 0 then redis.call('DEL', parked) end
  else
    local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
    if not row or row[2] ~= 'ailf.waiting' then return end
    key = redis.call('HGET', notes, id .. ':k')
    redis.call('XACK', stream, group, id)
  end
  redis.call('ZREM', due, id)
  redis.call('HDEL', notes, id .. ':f', id .. ':e', id .. ':k', id .. ':m')
  if not key then return end
  redis.call('ZREM', queue, lane_member(key, id))
  if not score or score == 'inf' then return end
  local width, most = read_concurrency(redis.call('HGET', notes, 'concurrency'))
  local function its_time(member) return time_of(stream, parked, member) end
  if make_lanes(due, queue, width or 1, most or 1, its_time).fill(key) then ring(bell) end
end
