--- Bad input never costs more than its channel: each kind gets the answer that docs/protocol.md gives it, and the next request works
-- wherever the stream can still be read.

local raw_channel = require "spec.peers.raw_channel"
local support = require "spec.support"

local text, value = raw_channel.text, raw_channel.value

local MEBIBYTE = 1024 * 1024
local LIMIT = 16 * MEBIBYTE -- of a message, after decompression and before
local HELLO = text('"next"', "GET", "/hello")

describe("bad input", function()
  local server, peer

  setup(function()
    server = support.serve "spec/data/app.lua"
    peer = assert(raw_channel.connect(server))
  end)
  teardown(support.finish)

  -- The stream can still be read: the same channel answers, and nothing else came.
  local function assert_goes_on(channel)
    local response = channel:ask(HELLO)
    assert.same({ 200, '"next"' }, { response.code, response.request_id })
  end

  -- The channel is lost, and nothing but it.
  local function assert_closed_after(code, channel)
    local responses = channel:closed()
    assert.equal(1, #responses)
    assert.same({ code, "0", channel.encoding }, { responses[1].code, responses[1].request_id, responses[1].encoding })
    local other = channel.peer:open "subsystem:korv"
    assert_goes_on(other)
    other:close()
    return value(responses[1])
  end

  local function assert_undecodable(response, encoding)
    assert.same({ 400, "0", encoding }, { response.code, response.request_id, response.encoding })
    local body = value(response)
    assert.equal("Unable to process request", body.message)
    assert.equal("string", type(body.detail))
    assert.not_equal("", body.detail)
  end

  for _, pairing in ipairs(raw_channel.pairings) do
    describe("over " .. pairing.name, function()
      local channel

      before_each(function() channel = peer:open_as(pairing) end)
      after_each(function() channel:close() end)

      local function gets(code, request_id, request)
        local response = channel:ask(request)
        assert.same({ code, request_id, pairing.encoding }, { response.code, response.request_id, response.encoding })
        assert_goes_on(channel)
        return value(response)
      end

      for _, case in ipairs {
        { "id", "0", "{}" },
        { "id", "0", '{"verb":"GET","resource":"/hello","body":null}' },
        { "id", "0", '{"verb":"STORE"}' },
        { "verb", "1", '{"id":1}' },
        { "verb", "1", '{"id":1,"resource":"/hello","body":null}' },
        { "resource", "1", '{"id":1,"verb":"GET"}' },
        { "resource", '"x"', '{"id":"x","verb":"STORE"}' },
        { "body", "1e3", '{"id":1e3,"verb":"STORE","resource":"/echo"}' },
        { "body", "1", '{"id":1,"verb":"UPDATE","resource":"/echo"}' },
      } do
        it(("misses the %s in %s"):format(case[1], case[3]), function()
          local response = channel:ask(case[3])
          assert.same({ 400, case[2] }, { response.code, response.request_id })
          assert.equal(("{\"message\":\"Missing '%s'\"}"):format(case[1]), response.body)
          assert_goes_on(channel)
        end)
      end

      it("takes a null body of STORE for a body", function()
        gets(200, "1", text("1", "STORE", "/echo", "null"))
      end)

      for _, id in ipairs { "null", "true", "false", "[]", "{}", "[1]", '"' .. ("x"):rep(300) .. '"', ("1"):rep(300) } do
        it(("refuses the id %.20s"):format(id), function()
          assert.equal("string", type(gets(400, "0", text(id, "GET", "/hello")).message))
        end)
      end

      it("refuses a resource or a verb that is no string", function()
        for _, resource in ipairs { "5", "null", "true", "[]", "{}" } do
          gets(400, "1", ('{"id":1,"verb":"GET","resource":%s,"body":null}'):format(resource))
          gets(400, "1", ('{"id":1,"verb":%s,"resource":"/hello","body":null}'):format(resource))
        end
      end)

      for name, document in pairs {
        ["no JSON at all"] = "hello",
        ["an array"] = "[1,2]",
        ["a number"] = "5",
        ["a string"] = '"GET"',
        ["null"] = "null",
        ["half an object"] = '{"id":1,"verb":"GET"',
        ["something after the object"] = HELLO .. "}",
        ["two objects"] = HELLO .. " " .. HELLO,
        ["NaN"] = text("1", "STORE", "/echo", "NaN"),
        ["a leading zero"] = text("1", "STORE", "/echo", "01"),
        ["a number out of range"] = text("1", "STORE", "/echo", "1e400"),
        ["a trailing comma"] = text("1", "STORE", "/echo", "[1,]"),
        ["single quotes"] = text("1", "STORE", "/echo", "'a'"),
        ["a comment"] = text("1", "STORE", "/echo", "1/**/"),
        ["a lone surrogate"] = text("1", "STORE", "/echo", [["\ud800"]]),
        ["a surrogate pair the wrong way round"] = text("1", "STORE", "/echo", [["\udc00\ud800"]]),
        ["a bare control character"] = text("1", "STORE", "/echo", '"a\tb"'),
        ["nesting over the limit"] = text("1", "STORE", "/echo", ("["):rep(129) .. ("]"):rep(129)),
        ["very deep nesting"] = text("1", "STORE", "/echo", ("["):rep(100000)),
        ["very deep nesting of objects"] = text("1", "STORE", "/echo", ('{"a":'):rep(20000)),
      } do
        it("cannot decode " .. name, function()
          channel:stream(channel:message(document))
          assert_undecodable(channel:expect(1)[1], pairing.encoding)
          assert_goes_on(channel)
        end)
      end

      it("takes nesting within the limit", function()
        local body = ("["):rep(100) .. ("]"):rep(100)
        assert.equal(body, channel:ask(text("1", "STORE", "/echo", body)).body)
      end)

      it("takes the last of a member that comes twice", function()
        gets(200, "2", '{"id":1,"verb":"STORE","id":2,"resource":"/nowhere","verb":"GET","resource":"/hello"}')
      end)

      it("answers an endpoint's error with its message and a traceback", function()
        local body = gets(500, "1", text("1", "GET", "/error"))
        assert.truthy(body.message:find "boom", body.message)
        assert.truthy(body.traceback:find("app.lua", 1, true), body.traceback)
      end)

      it("answers an endpoint that errors with something else than a string", function()
        for _, resource in ipairs { "/error-table", "/error-nil" } do
          local body = gets(500, "1", text("1", "GET", resource))
          assert.same({ "string", "string" }, { type(body.message), type(body.traceback) })
        end
      end)

      it("says of an endpoint that it returned nothing", function()
        local message = gets(500, "1", text("1", "GET", "/nothing")).message
        assert.truthy(message:find "return", message)
      end)

      for resource, path in pairs {
        ["/function"] = "body", ["/function-inside"] = "body.items[3].when", ["/nan"] = "body[1].ratio", ["/not-utf8"] = "body.name",
        ["/mixed"] = "body.list",
      } do
        it(("names %s where %s returned what has no JSON form"):format(path, resource), function()
          local message = gets(500, "1", text("1", "GET", resource)).message
          assert.truthy(message:find(path, 1, true), message)
        end)
      end

      it("takes an endpoint's code only where it is an integer from 100 to 599", function()
        for _, resource in ipairs { "/code-99", "/code-600", "/code-text", "/code-half" } do
          assert.equal("string", type(gets(500, "1", text("1", "GET", resource)).message))
        end
        gets(204, "1", text("1", "GET", "/code-204"))
        gets(599, "1", text("1", "GET", "/code-599"))
      end)

      it("answers half a message before EOF with 400, then EOF and close", function()
        local own = peer:open_as(pairing)
        local bytes = own:message(HELLO)
        own:request(HELLO)
        own:send(bytes:sub(1, #bytes // 2))
        local responses = own:finish()
        assert.equal(2, #responses)
        assert.same({ "eof", "close" }, responses.events)
        assert.equal(200, responses[1].code)
        assert_undecodable(responses[2], pairing.encoding)
      end)

      it("outlives a channel that is closed or a connection that is lost with requests under way", function()
        local own = peer:open_as(pairing)
        own:request(text("1", "GET", "/slow"), text("2", "GET", "/slow"))
        local events = own:close().events
        assert.equal("close", events[#events])
        local other = assert(raw_channel.connect(server))
        other:open_as(pairing):request(text("1", "GET", "/slow"))
        other.process:kill()
        assert.equal(200, channel:ask(text("1", "GET", "/slow")).code)
      end)
    end)
  end

  describe("in gzip", function()
    local channel

    before_each(function() channel = peer:open_as(raw_channel.pairings[1]) end)
    after_each(function() channel:close() end)

    local function flip(bytes, at)
      return bytes:sub(1, at - 1) .. string.char(bytes:byte(at) ~ 1) .. bytes:sub(at + 1)
    end

    for name, at in pairs { ["CRC"] = 8, ["length"] = 4 } do
      it(("answers a wrong %s with 400, and the channel goes on"):format(name), function()
        local bytes = channel:message(HELLO)
        channel:send(flip(bytes, #bytes - at + 1))
        assert_undecodable(channel:expect(1)[1], "gzip")
        assert_goes_on(channel)
      end)

      it(("finds the next member behind a wrong %s in the same packet"):format(name), function()
        local bytes = channel:message(HELLO)
        channel:send(flip(bytes, #bytes - at + 1) .. bytes)
        local responses = channel:expect(2)
        assert.same({ 400, 200 }, { responses[1].code, responses[2].code })
      end)
    end

    it("answers a broken deflate stream with 400 and closes", function()
      channel:send("\x1f\x8b\8\0\0\0\0\0\0\3" .. ("\xff"):rep(40))
      assert.equal("Unable to process request", assert_closed_after(400, channel).message)
    end)

    it("closes only the channel where megabytes are still on their way behind a broken deflate stream", function()
      local own = assert(raw_channel.connect(server)):open_as(raw_channel.pairings[1])
      own:stream("\x1f\x8b\8\0\0\0\0\0\0\3" .. ("\xff"):rep(3 * MEBIBYTE))
      assert_closed_after(400, own)
    end)

    it("answers a member that is no gzip behind its first byte with 400 and closes", function()
      channel:send("\x1f" .. HELLO .. "\n")
      assert.equal("Unable to process request", assert_closed_after(400, channel).message)
    end)

    it("answers a bomb with 413 and closes", function()
      local bomb = channel.peer:pack(text("1", "STORE", "/length", '"' .. ("a"):rep(32 * MEBIBYTE) .. '"'))
      assert.is_true(#bomb < MEBIBYTE)
      channel:stream(bomb)
      assert_closed_after(413, channel)
    end)

    it("takes a message just within the limit and refuses one just over it", function()
      local rest = #text("1", "STORE", "/length", '""')
      local most = text("1", "STORE", "/length", '"' .. ("a"):rep(LIMIT - rest) .. '"')
      channel:stream(channel.peer:pack(most))
      assert.equal(tostring(LIMIT - rest), channel:expect(1, 20)[1].body)
      channel:stream(channel.peer:pack(most .. " "))
      assert_closed_after(413, channel)
    end)

    it("answers a member that is over the limit before decompression with 413 and closes", function()
      local head = "\x1f\x8b\8\0\0\0\0\0\0\3"
      channel:stream(head .. ("\0\0\0\xff\xff"):rep(LIMIT // 5 + 1000)) -- empty deflate blocks
      assert_closed_after(413, channel)
    end)

    it("does not look for the end of a file name for ever", function()
      channel:stream("\x1f\x8b\8\8\0\0\0\0\0\3" .. ("n"):rep(LIMIT + 1000))
      local responses = channel:closed()
      assert.equal(1, #responses)
      assert.truthy(responses[1].code == 413 or responses[1].code == 400)
    end)
  end)

  describe("in lines", function()
    local channel

    before_each(function() channel = peer:open_as(raw_channel.pairings[2]) end)
    after_each(function() channel:close() end)

    it("answers a line that is not UTF-8 with 400, and the channel goes on", function()
      channel:send(text("1", "STORE", "/echo", '"\xff"') .. "\n" .. text("1", "STORE", "/echo", '"\xc0\xaf"') .. "\n")
      for _, response in ipairs(channel:expect(2)) do
        assert_undecodable(response, "line")
      end
      assert_goes_on(channel)
    end)

    it("answers bytes that are no text with 400, and the channel goes on", function()
      channel:send "\0\1\2\x80\xfe\n"
      assert_undecodable(channel:expect(1)[1], "line")
      assert_goes_on(channel)
    end)

    it("answers megabytes without a newline with one 413, skips to the newline and goes on", function()
      channel:stream(("x"):rep(LIMIT + 3 * MEBIBYTE))
      local response = channel:expect(1)[1]
      assert.same({ 413, "0", "line" }, { response.code, response.request_id, response.encoding })
      channel:stream("and its end\n" .. HELLO .. "\n")
      local following = channel:finish()
      assert.equal(1, #following)
      assert.same({ 200, '"next"' }, { following[1].code, following[1].request_id })
    end)

    it("closes the channel where the newline does not come for the limit again", function()
      local own = assert(raw_channel.connect(server)):open_as(raw_channel.pairings[2])
      own:stream(("x"):rep(2 * LIMIT + MEBIBYTE))
      assert_closed_after(413, own)
    end)

    it("takes a line just within the limit", function()
      local rest = #text("1", "STORE", "/length", '""')
      channel:stream(text("1", "STORE", "/length", '"' .. ("a"):rep(LIMIT - rest) .. '"') .. "\n")
      assert.equal(tostring(LIMIT - rest), channel:expect(1, 20)[1].body)
    end)
  end)

  it("is answered before SSH by hanging up, or not at all, and costs nobody else anything", function()
    local channel = peer:open "subsystem:korv"
    for _, bytes in ipairs { "GET / HTTP/1.1\r\nHost: korv\r\n\r\n", ("\0\xff\x1f\x8b"):rep(5000), "SSH-2.0-x\r\n" .. ("\xff"):rep(5000),
      HELLO .. "\n", "SSH-2.0-half" } do
      peer:garbage(bytes, 0.3)
      assert_goes_on(channel)
    end
    assert.equal(200, assert(raw_channel.connect(server)):open("tcpip"):ask(HELLO).code)
  end)
end)
