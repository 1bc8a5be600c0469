-- How the leases of a consumer end that leaves or has died; loaded before the transitions that end them.
--
-- returns nothing by itself
-- writes  the helper keys of the group (see group.lua)
-- bound   PAGE messages of each kind

-- Return `release_all`. It is made where a script needs it: the server makes the other functions each time that it runs
-- a script.
local function make_release_all()
  -- Return the ids without those of entries that retention has removed, which are finished: it removes the oldest
  -- first. One that another program removed is due at once instead, and the next fetch finishes it.
  local function kept(ids)
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    local rest = {}
    for _, id in ipairs(ids) do
      if first and not before(id, first[1]) then rest[#rest + 1] = id else finish(id) end
    end
    return rest
  end

  -- Let the leases of these pending entries end, all of one source; with `uncounted` their deliveries don't count.
  local function release_leases(key, name, ids, uncounted)
    if key == stream then ids = kept(ids) end
    if #ids == 0 then return end
    local members = {}
    for at, id in ipairs(ids) do members[at] = (key == again and '~' or '') .. id end
    local counted, ends, keys = {}, redis.call('ZMSCORE', due, unpack(members)), {}
    if has_lanes then
      for at, member in ipairs(members) do keys[at] = member .. ':k' end
      keys = redis.call('HMGET', notes, unpack(keys))
    end
    local claim, scores = { key, name, WAITING, 0 }, {}
    for at, member in ipairs(members) do
      local score = tonumber(ends[at] or now)
      if uncounted and score > now then counted[#counted + 1] = member .. ':f' end
      claim[#claim + 1] = ids[at]
      scores[#scores + 1] = score > now and keys[at] and get_lanes().next_turn() or number(math.min(score, now))
      scores[#scores + 1] = member
    end
    claim[#claim + 1] = 'JUSTID'
    if #counted > 0 then
      local values = {}
      for at, earlier in ipairs(redis.call('HMGET', notes, unpack(counted))) do
        values[#values + 1] = counted[at]
        values[#values + 1] = (tonumber(earlier) or 0) + 1
      end
      redis.call('HSET', notes, unpack(values))
    end
    redis.call('XCLAIM', unpack(claim))
    redis.call('ZADD', due, unpack(scores))
    must_notify = true
  end

  -- End the leases of a consumer, at most PAGE of each kind; when none is left remove the consumer. Return whether none
  -- is left. With `uncounted` the deliveries don't count.
  local function release_all(consumer, uncounted)
    local left = false
    if consumer == WAITING then -- another program's heartbeat: removing this consumer would drop what waits
      redis.call('ZREM', alive, consumer)
      return true
    end
    for _, source in ipairs({ { stream, group }, { again, 'g' } }) do
      local key, name = unpack(source)
      local rows = redis.pcall('XPENDING', key, name, '-', '+', PAGE, consumer)
      if not rows.err then
        local ids = {}
        for at, row in ipairs(rows) do ids[at] = row[1] end
        release_leases(key, name, ids, uncounted)
        left = left or #rows == PAGE
        if #rows < PAGE then redis.call('XGROUP', 'DELCONSUMER', key, name, consumer) end
      end
    end
    if not left then redis.call('ZREM', alive, consumer) end
    return not left
  end

  return release_all
end
