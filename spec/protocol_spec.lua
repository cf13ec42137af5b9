--- The protocol on the wire, seen from a peer that chooses every packet: docs/protocol.md, its traps each by name.
-- What is wrong with a message and how that is answered is in bad_input_spec.lua.

local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"

local text = raw_channel.text

local MEBIBYTE = 1024 * 1024

-- Deflate looks back 32 KiB, so this repeats too late for it to notice.
local function noise(bytes)
  local chunk = {}
  for i = 1, 65536 do
    chunk[i] = string.char(math.random(97, 122))
  end
  return table.concat(chunk):rep(math.ceil(bytes / 65536)):sub(1, bytes)
end

describe("the protocol on the wire", function()
  local server, peer

  setup(function()
    server = support.serve "spec/data/app.lua"
    peer = assert(raw_channel.connect(server))
  end)
  teardown(support.finish)

  for _, pairing in ipairs(raw_channel.every_pairing) do
    describe("over " .. pairing.name, function()
      local channel

      before_each(function() channel = peer:open_as(pairing) end)
      after_each(function() channel:close() end)

      it("answers GET /hello in the encoding of the request, with the server's time as a float", function()
        local response = channel:ask(text("1", "GET", "/hello"))
        assert.equal(200, response.code)
        assert.equal('{"msg":"Hello World!"}', response.body)
        assert.equal(pairing.encoding, response.encoding)
        assert.truthy(response.time:find "^%d+%.%d+$", "not a float: " .. response.time)
        assert.near(os.time(), tonumber(response.time), 60)
      end)

      for _, id in ipairs { "1795330870.6222768", "18446744073709551615", "1e3", [["a\"b"]], [["\u00e9"]], "-0", "0.10", [[""]],
        '"' .. ("x"):rep(254) .. '"' } do
        it(("gives the id %.30s back byte for byte"):format(id), function()
          assert.equal(id, channel:ask(text(id, "GET", "/hello")).request_id)
          assert.equal(id, channel:ask(text(id, "GET", "/nowhere")).request_id)
          assert.equal(id, channel:ask(text(id, "GET", "/error")).request_id)
        end)
      end

      for _, body in ipairs { "9007199254740993", "-9223372036854775808", "9223372036854775807", "0.1", "1.7976931348623157e308", "[]",
        "{}", "[[]]", "null", '{"a":[]}', "[null]", "2.0", "true", [["\"\\ ü €"]], "[1,[2.5,{}],null,false]" } do
        it("echoes the body " .. body .. " unchanged", function()
          for _, verb in ipairs { "GET", "STORE", "UPDATE", "DELETE" } do
            local response = channel:ask(text("1", verb, "/echo", body))
            local digits = response.body:gsub("e%+", "e") -- the exponent's sign is no digit
            assert.same({ 200, body }, { response.code, digits })
          end
        end)
      end

      it("answers an unknown resource and an unknown verb with 404 and a null body", function()
        for _, request in ipairs { text("1", "GET", "/nowhere"), text("1", "PATCH", "/hello"), text("1", "STORE", "/hello"),
          text("1", "get", "/hello") } do
          local response = channel:ask(request)
          assert.same({ 404, "null", "1" }, { response.code, response.body, response.request_id })
        end
      end)

      it("hands unknown fields on and ignores them", function()
        assert.equal(200, channel:ask '{"id":1,"verb":"GET","resource":"/hello","body":null,"colour":"blue"}'.code)
        assert.equal(200, channel:ask '{"id":1,"verb":"GET","resource":"/hello"}'.code)
      end)

      it("answers STORE and UPDATE once, without a spurious 400", function()
        local own = peer:open_as(pairing)
        own:request(text("1", "STORE", "/echo", '"one"'), text("2", "UPDATE", "/echo", '"two"'), text("3", "GET", "/hello"))
        local codes = {}
        for _, response in ipairs(own:finish()) do
          codes[response.request_id] = (codes[response.request_id] or "") .. response.code
        end
        assert.same({ ["1"] = "200", ["2"] = "200", ["3"] = "200" }, codes)
      end)

      it("answers requests of one id each", function()
        channel:request(text("7", "GET", "/slow", "1"), text("7", "GET", "/slow", "2"))
        local responses = channel:expect(2)
        assert.same({ "7", "7" }, { responses[1].request_id, responses[2].request_id })
        local bodies = { responses[1].body, responses[2].body }
        table.sort(bodies)
        assert.same({ "1", "2" }, bodies)
      end)

      it("does not let a waiting endpoint hold up the next request", function()
        channel:request(text("1", "GET", "/slow"), text("2", "GET", "/hello"))
        local responses = channel:expect(2)
        assert.same({ "2", "1" }, { responses[1].request_id, responses[2].request_id })
      end)

      it("answers what is under way after EOF, then sends EOF and closes", function()
        local own = peer:open_as(pairing)
        own:request(text("1", "GET", "/slow"), text("2", "GET", "/slow"), text("3", "GET", "/hello"))
        local responses = own:finish()
        assert.equal(3, #responses)
        assert.same({ "eof", "close" }, responses.events)
      end)

      it("answers EOF on an idle channel with EOF and close", function()
        local own = peer:open_as(pairing)
        own:request(text("1", "GET", "/hello"))
        own:expect(1)
        local responses = own:finish()
        assert.equal(0, #responses)
        assert.same({ "eof", "close" }, responses.events)
      end)

      it("reads two messages in one packet", function()
        channel:send(channel:message(text("1", "GET", "/hello")) .. channel:message(text("2", "GET", "/echo", "[]")))
        local responses = channel:expect(2)
        assert.same({ "1", "2" }, { responses[1].request_id, responses[2].request_id })
      end)

      it("reads one message in ten packets", function()
        local bytes, at = channel:message(text("1", "STORE", "/echo", '"in ten packets"')), {}
        for i = 1, 9 do
          at[i] = #bytes * i // 10
        end
        channel:send_split(bytes, at)
        assert.equal('"in ten packets"', channel:expect(1)[1].body)
      end)

      it("reads the end of one message and the start of the next in one packet", function()
        local first, second = channel:message(text("1", "GET", "/hello")), channel:message(text("2", "GET", "/hello"))
        channel:send_split(first .. second, { 5, #first + 1, #first + 11 })
        assert.same({ "1", "2" }, { channel:expect(1)[1].request_id, channel:expect(1)[1].request_id })
      end)
    end)
  end

  it("carries 8 MiB both ways at once without a stall, and gives the memory back", function()
    local body = '"' .. noise(8 * MEBIBYTE) .. '"'
    local before = server:rss_bytes()
    for _, pairing in ipairs(raw_channel.pairings) do
      local channel = peer:open_as(pairing)
      for id = 1, 2 do -- the second is on its way in while the first goes out
        channel:stream(channel:message(text(tostring(id), "STORE", "/echo", body)))
      end
      for _, response in ipairs(channel:expect(2, 30)) do
        assert.equal(200, response.code)
        assert.is_true(body == response.body, "the body came back changed")
      end
      channel:finish()
    end
    if support.patience == 1 then -- under a checker, memory tells nothing
      support.wait_for(function() return server:rss_bytes() < before + 8 * MEBIBYTE end, 5)
      local after = server:rss_bytes()
      assert.is_true(after < before + 8 * MEBIBYTE, ("%.1f MiB before, %.1f MiB after"):format(before / MEBIBYTE, after / MEBIBYTE))
    end
  end)

  it("keeps nothing of lines of 15 MiB that were cut off", function()
    local line = '{"id":1,"verb":"STORE","resource":"/echo","body":"' .. ("x"):rep(15 * MEBIBYTE)
    local before = server:rss_bytes()
    for _ = 1, 3 do
      local done = support.run(support.ssh(server, { "-s" }, "127.0.0.1", "korv"), { stdin = line })
      assert.matches('"code":400', done.stdout)
    end
    if support.patience > 1 then return end
    support.wait_for(function() return server:rss_bytes() < before + 8 * MEBIBYTE end, 5)
    local grown = server:rss_bytes() - before
    assert.is_true(grown < 8 * MEBIBYTE, ("%.1f MiB"):format(grown / MEBIBYTE))
  end)

  describe("to a peer that speaks gzip", function()
    local channel

    before_each(function() channel = peer:open_as(raw_channel.pairings[1]) end)
    after_each(function() channel:close() end)

    it("sends a response as one SSH data packet", function()
      assert.is_true(channel:ask(text("1", "GET", "/hello")).one_packet)
      assert.is_true(channel:ask(text("1", "GET", "/error")).one_packet)
      assert.is_true(channel:ask(text("1", "GET", "/noise", "20000")).one_packet)
    end)

    it("sends a response that just fits the packet size as one packet", function()
      local response = channel:ask(text("1", "GET", "/noise", "42000"))
      assert.is_true(channel:expect(0).packets[1] > 31000, "the spec's response should be longer")
      assert.is_true(response.one_packet)
    end)

    it("splits a response that does not fit, and lets no other share its packets", function()
      channel:request(text("1", "GET", "/noise", "100000"), text("2", "GET", "/hello"))
      local responses = channel:expect(2)
      assert.is_true(responses[1].alone and responses[2].alone)
      assert.is_false(responses[1].one_packet)
    end)

    it("never lets two messages share a packet, however many came in one", function()
      local bytes = ""
      for id = 1, 100 do
        bytes = bytes .. channel:message(text(tostring(id), "GET", "/hello"))
      end
      channel:send(bytes)
      local responses = channel:expect(100)
      for _, response in ipairs(responses) do
        assert.is_true(response.one_packet)
      end
      assert.equal(100, #responses.packets)
    end)

    it("waits for a window that holds the whole message", function()
      local narrow = peer:open("tcpip", { encoding = "gzip", window = 40000 })
      narrow:pause()
      narrow:request(text("1", "GET", "/noise", "32000"), text("2", "GET", "/noise", "32000"))
      channel:ask(text("3", "GET", "/slow")) -- by then the second would have been split
      narrow:resume()
      local responses = narrow:expect(2)
      assert.is_true(responses[1].one_packet and responses[2].one_packet)
    end)

    it("splits what the peer's whole window can't hold, for it would wait for ever", function()
      local narrow = peer:open("tcpip", { encoding = "gzip", window = 10000 })
      assert.is_true(narrow:ask(text("1", "GET", "/noise", "20000")).alone)
    end)

    it("reads a member that comes byte by byte, and one with all of gzip's header fields", function()
      local bytes, at = channel:message(text("1", "GET", "/hello")), {}
      for i = 1, #bytes - 1 do
        at[i] = i
      end
      channel:send_split(bytes, at)
      assert.equal(200, channel:expect(1)[1].code)
      channel:send(bytes:sub(1, 3) .. "\x1c" .. bytes:sub(5, 10) .. "\3\0abcname\0comment\0" .. bytes:sub(11))
      assert.equal(200, channel:expect(1)[1].code)
    end)
  end)

  describe("to a peer that speaks lines", function()
    local channel

    before_each(function() channel = peer:open_as(raw_channel.pairings[2]) end)
    after_each(function() channel:close() end)

    it("reads many lines in one packet and batches the answers", function()
      local lines = {}
      for id = 1, 200 do
        lines[id] = text(tostring(id), "GET", "/hello") .. "\n"
      end
      channel:send(table.concat(lines))
      local responses = channel:expect(200)
      assert.is_true(#responses.packets < 50, #responses.packets .. " packets for 200 lines")
    end)

    it("ignores lines of white space, and a carriage return before a newline", function()
      channel:send("\n \t \r\n\n" .. text("1", "GET", "/hello") .. "\r\n\n" .. text("2", "GET", "/hello") .. "\n  \n")
      local responses = channel:finish()
      assert.equal(2, #responses)
      assert.same({ 200, 200 }, { responses[1].code, responses[2].code })
    end)

    it("takes white space between tokens", function()
      channel:send ' { "id" : 1 ,\t"verb": "GET", "resource" : "/hello" } \n'
      assert.equal(200, channel:expect(1)[1].code)
    end)

    it("reads a line that comes byte by byte", function()
      local bytes, at = text("1", "GET", "/hello") .. "\n", {}
      for i = 1, #bytes - 1 do
        at[i] = i
      end
      channel:send_split(bytes, at)
      assert.equal(200, channel:expect(1)[1].code)
    end)
  end)

  it("answers each request in the encoding that it came in, mixed on one channel and in one packet", function()
    for _, way in ipairs { "tcpip", "subsystem:korv" } do
      local channel, bytes = peer:open(way), ""
      local order = { "gzip", "line", "line", "gzip", "gzip", "line" }
      for id, encoding in ipairs(order) do
        bytes = bytes .. channel:message(text(tostring(id), "GET", "/hello"), encoding)
      end
      channel:send(bytes)
      for _, response in ipairs(channel:finish()) do
        assert.equal(order[tonumber(response.request_id)], response.encoding)
        assert.is_true(response.encoding == "line" or response.one_packet)
        order[tonumber(response.request_id)] = nil
      end
      assert.is_nil(next(order))
    end
  end)

  describe("ways in", function()
    it("names the host key's fingerprint where it listens", function()
      assert.equal(support.fingerprint(server.host_key), server.fingerprint)
      assert.equal("ssh-ed25519", server.key_kind)
    end)

    it("takes any destination and connects to none", function()
      for _, place in ipairs { { host = "127.0.0.1", port = server.port }, { host = "nowhere.invalid", port = 1 },
        { host = "", port = 0 } } do
        local channel = peer:open("tcpip", place)
        assert.equal(200, channel:ask(text("1", "GET", "/hello")).code)
        channel:finish()
      end
    end)

    it("takes any user name, and only a key that is authorized", function()
      local other = assert(raw_channel.connect(server, { user = "somebody else" }))
      assert.equal(200, other:open("tcpip"):ask(text("1", "GET", "/hello")).code)
      local stranger, why = raw_channel.connect(server, { key = support.key "stranger" })
      assert.is_nil(stranger)
      assert.truthy(why:find "PermissionDenied", why)
    end)

    it("serves several channels of one connection, each by itself", function()
      local channels = {}
      for i = 1, 10 do
        channels[i] = peer:open_as(raw_channel.every_pairing[i % 4 + 1])
        channels[i]:request(text(tostring(i), "GET", "/slow", tostring(i)))
      end
      for i, channel in ipairs(channels) do
        local response = channel:expect(1)[1]
        assert.same({ tostring(i), tostring(i) }, { response.request_id, response.body })
      end
      for _, channel in ipairs(channels) do
        channel:finish()
      end
    end)

    it("refuses other subsystems, channels and forwarding, and goes on", function()
      for _, way in ipairs { "subsystem:sftp", "subsystem:korv2", "type:direct-streamlocal@openssh.com",
        "type:nothing@example.com", "type:x11" } do
        assert.is_nil(peer:try_open(way), way)
      end
      assert.is_false(peer:order { ["do"] = "forward" }.opened)
      assert.equal(200, peer:open("subsystem:korv"):ask(text("1", "GET", "/hello")).code)
    end)
  end)
end)
