-- Judges what a request asks by its limits as they stand, and holds all of it or nothing; or only looks at them.
-- numbers: from the seventh on: mode (0: look, 1: hold, 2: hold whatever the limits say); how many numbers follow,
--          wants [feature, quantity]; limits [subject (1: tenant, 2: key, 3: user), feature, start, end, hard, ceiling,
--          quantity wanted]
-- beside:  id; the hold as it is kept, without its instant; names of key's and user's subjects ('k:…' or '', 'u:…');
--          names of the limits' features (MessagePack)
-- It answers numbers: 1 (held), 2 (over) or 3 (seen); now; holds of requests and reservations reaped; 0; 0; how long
-- the tenant's list and the key's are; the lists of tenant, key and user as they were before this hold.

local ID, KEY, USER = ARGV[4], ARGV[6], ARGV[7]
local LOOK, FORCE = 0, 2
local HELD, OVER, SEEN = 1, 2, 3
local mode, wants_end = q[7], 8 + q[8]

if mode ~= LOOK and q[3] < 0 then
  for l = wants_end + 1, asked, 7 do
    if now < q[l + 2] or q[l + 3] <= now then return cmsgpack.pack({ status = 'time', now = now }) end
  end
end

local reaped, expired, is_tended, is_full = 0, 0, false, false
for _ = 1, 3 do
  local raw = call('HGET', ROOT, '')
  local count = raw and #raw / 8
  local tenant = raw
    and (count <= SHORT and { struct.unpack(string.sub(DOUBLES, 1, count + 1), raw) } or read(raw, 1, count))
  if raw then tenant[count + 1] = nil end -- where it stopped reading
  local is_in_order = raw and tenant[1] == q[1] and (now < tenant[DUE] or is_tended)

  -- Tenant, key and user, as far as they have counters.
  local lists, raw_key, raw_user = { tenant }, '', ''
  if is_in_order and tenant[SCOPES] ~= 0 then
    for s = 2, 3 do
      local name = s == 2 and KEY or USER
      local found = name ~= '' and call('GET', ROOT .. name)
      local list = found and read(found, 1, #found / 8)
      if list and list[INC] == tenant[INC] then
        lists[s] = list
        if s == 2 then raw_key = found else raw_user = found end
        if now >= list[DUE] and not is_tended then is_in_order = false end
      end
    end
  end

  local fits, is_changed, expected = true, false, FIRST
  for l = wants_end + 1, is_in_order and asked or 0, 7 do
    local list, feature, first, last, hard = lists[q[l]], q[l + 1], q[l + 2], q[l + 3], q[l + 4]
    local c = expected
    if not list or list[c] ~= feature or list[c + 1] ~= first or list[c + 2] ~= last then
      c = FIRST
      while list and list[c] and (list[c] ~= feature or list[c + 1] ~= first or list[c + 2] ~= last) do
        c = c + STRIDE
      end
      if not list or not list[c] then
        is_in_order = false -- it is missing
        break
      end
    end
    expected = c + STRIDE
    if list[c + 5] ~= hard then list[c + 5], is_changed = hard, true end
    local ceiling, wanted = q[l + 5], q[l + 6]
    if ceiling >= 0 and wanted > 0 then
      local taken = list[c + 3] + list[c + 4] + wanted
      if taken > ceiling and ceiling < MAX then fits = false end
    end
  end

  if is_in_order then
    local status, deadline = OVER, now + q[6]
    if mode == LOOK then
      status = SEEN
    elseif fits or mode == FORCE then
      status = HELD
      is_changed = true
      for s = 1, 3 do
        local list = lists[s]
        for c = FIRST, list and #list or 0, STRIDE do
          if list[c + 1] <= now and now < list[c + 2] then
            for w = 9, wants_end, 2 do
              if q[w] == list[c] then
                list[c + 4] = list[c + 4] + q[w + 1]
                if list[c + 4] > MAX then is_full = true end
              end
            end
          end
        end
      end
      if deadline < tenant[DUE] then tenant[DUE] = deadline end
    end
    if is_changed and not is_full then
      local packed = count <= SHORT and struct.pack(string.sub(DOUBLES, 1, count + 1), unpack(tenant)) or written(tenant)
      if status == HELD then
        call('HSET', ROOT, '', packed, ID, struct.pack('<d', now) .. ARGV[5])
      else
        call('HSET', ROOT, '', packed)
      end
      if lists[2] then call('SET', ROOT .. KEY, written(lists[2]), 'KEEPTTL') end
      if lists[3] then call('SET', ROOT .. USER, written(lists[3]), 'KEEPTTL') end
    end
    if not is_full then
      return struct.pack('<dddddddd', status, now, reaped, expired, 0, 0, #raw / 8, #raw_key / 8)
        .. raw .. raw_key .. raw_user
    end
  end

  -- What is rare: the tenant is opened, what is due is done, new counters are put in place; then once more.
  --- common ---
  open_tenant()
  if is_full then
    -- A sum comes to the end of the scale.
    open_hold(ID, struct.pack('<d', now) .. ARGV[5], now + q[6])
    save_subjects()
    return struct.pack('<dddddddd', HELD, now, reaped, expired, 0, 0, #raw / 8, #raw_key / 8)
      .. raw .. raw_key .. raw_user
  end
  reaped, expired = tend()
  local names, feature_names, missing = { 't', KEY, USER }, cmsgpack.unpack(ARGV[8]), {}
  for l = wants_end + 1, asked, 7 do
    local name, feature, first, last, hard = names[q[l]], q[l + 1], q[l + 2], q[l + 3], q[l + 4]
    if find(name, feature, first, last) then
      note_scope(name)
    else
      local place = (l - wants_end - 1) / 7
      if first > tenant[LATEST] then
        -- It holds nothing but what will still come by.
        add_counter(name, feature, feature_names[place + 1], first, last, 0, hard)
      else
        missing[#missing + 1] = place
      end
    end
  end
  for n = 2, 3 do
    local list = names[n] ~= '' and subject(names[n])
    if list and #list >= FIRST and now >= list[DUE] then changed[names[n]] = true end
  end
  save_subjects()
  if #missing > 0 then
    return with_events({ status = 'load', reaped = reaped, expired = expired, missing = missing })
  end
  is_tended = true
end
return redis.error_reply('ERR counters went as soon as they were there')
