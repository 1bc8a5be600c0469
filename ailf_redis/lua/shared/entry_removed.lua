-- What a group does about an entry that is removed from the stream; loaded before the transitions that remove entries.
--
-- returns nothing by itself
-- writes  the helper keys of the group (see group.lua)

-- A leased entry stays pending, as its consumer may still settle it. One that waits, parked or pending, is forgotten if
-- it has no ordering key or is behind another entry of its key. One that is the first of its key is due now: the next
-- fetch finds it removed and releases the next one of the key.
local function on_entry_removed(stream, group, id, due, bell, notes, queue, parked)
  local waits = redis.call('XRANGE', parked, id, id)[1]
  local score = redis.call('ZSCORE', due, id)
  local key
  if waits then
    key = string.match(waits[2][2], '^%d*|(.+)$')
    score = score or 'inf'
  else
    local row = redis.call('XPENDING', stream, group, id, id, 1)[1]
    if not row or row[2] ~= 'ailf.waiting' then return end
    key = redis.call('HGET', notes, id .. ':k')
  end
  if score == 'inf' or not key then
    if waits then
      redis.call('XDEL', parked, id)
      if redis.call('XLEN', parked) == 0 then redis.call('DEL', parked) end
    else
      redis.call('XACK', stream, group, id)
    end
    redis.call('ZREM', due, id)
    redis.call('HDEL', notes, id .. ':f', id .. ':e', id .. ':k', id .. ':m')
    if key then redis.call('ZREM', queue, lane_member(key, id)) end
  elseif score and tonumber(score) > now then
    redis.call('ZADD', due, number(now), id)
    ring(bell)
  end
end
