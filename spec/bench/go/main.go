// A korv server on Go's x/crypto/ssh, as a good engineer would write it in an afternoon: what korv's own is measured against. It answers
// GET /hello and echoes on /echo, in gzip members over direct-tcpip and in lines over the subsystem korv. Requests of one channel are
// answered one after the other, which costs Go the least: an endpoint that waits would hold up its channel.
//
//	main --host-key FILE --authorized-key FILE.pub      takes a free port of 127.0.0.1 and prints it
package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"golang.org/x/crypto/ssh"
)

type request struct {
	ID       json.RawMessage `json:"id"`
	Verb     string          `json:"verb"`
	Resource string          `json:"resource"`
	Body     interface{}     `json:"body"`
}

type response struct {
	ID        float64         `json:"id"`
	RequestID json.RawMessage `json:"request_id"`
	Code      int             `json:"code"`
	Body      interface{}     `json:"body"`
}

type message struct {
	Message string `json:"message"`
}

type endpoint func(*request) (int, interface{})

type route struct{ verb, resource string }

var routes = map[route]endpoint{
	{"GET", "/hello"}: func(*request) (int, interface{}) {
		return 200, map[string]string{"msg": "Hello World!"}
	},
	{"STORE", "/echo"}: func(r *request) (int, interface{}) { return 200, r.Body },
}

const (
	messageMost = 16 << 20 // bytes
	storedMost  = 1 << 10  // messages up to here are not worth packing
)

func run(r *request) (int, interface{}) {
	if found := routes[route{r.Verb, r.Resource}]; found != nil {
		return found(r)
	}
	return 404, nil
}

func answer(text []byte) ([]byte, error) {
	out := response{ID: float64(time.Now().UnixMicro()) / 1e6, RequestID: json.RawMessage("0"), Code: 400}
	var in request
	if err := json.Unmarshal(text, &in); err != nil {
		out.Body = message{"Unable to process request"}
	} else if in.ID == nil {
		out.Body = message{"Missing 'id'"}
	} else {
		out.RequestID = in.ID
		out.Code, out.Body = run(&in)
	}
	return json.Marshal(&out)
}

// Lines: what has come in is answered in one write.
func serveLines(channel io.Writer, in *bufio.Reader) error {
	out := bufio.NewWriterSize(channel, 32*1024)
	var long []byte
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if long = append(long, line...); len(long) > messageMost {
				return errors.New("a line that is too long")
			}
			continue
		}
		if err != nil {
			return err
		}
		if len(long) > 0 {
			line, long = append(long, line...), nil
		}
		text, err := answer(line)
		if err != nil {
			return err
		}
		out.Write(text)
		out.WriteByte('\n')
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return err
			}
		}
	}
}

// packer keeps its compressors, and makes each message one gzip member.
type packer struct {
	stored, packed *gzip.Writer
	out            bytes.Buffer
}

func newPacker() *packer {
	stored, _ := gzip.NewWriterLevel(nil, gzip.NoCompression)
	packed, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return &packer{stored: stored, packed: packed}
}

func (p *packer) pack(text []byte) ([]byte, error) {
	writer := p.packed
	if len(text) <= storedMost {
		writer = p.stored
	}
	p.out.Reset()
	writer.Reset(&p.out)
	if _, err := writer.Write(text); err != nil {
		return nil, err
	}
	err := writer.Close()
	return p.out.Bytes(), err
}

// Members: each answer is one write, and so one SSH packet where it fits.
func serveMembers(channel io.Writer, in *bufio.Reader) error {
	member, err := gzip.NewReader(in)
	if err != nil {
		return err
	}
	packer := newPacker()
	var text bytes.Buffer
	for {
		member.Multistream(false)
		text.Reset()
		if _, err := text.ReadFrom(io.LimitReader(member, messageMost)); err != nil {
			return err
		}
		made, err := answer(text.Bytes())
		if err != nil {
			return err
		}
		if made, err = packer.pack(made); err != nil {
			return err
		}
		if _, err := channel.Write(made); err != nil {
			return err
		}
		if err := member.Reset(in); err != nil {
			return err
		}
	}
}

func serveChannel(channel ssh.Channel) {
	defer channel.Close()
	in := bufio.NewReaderSize(channel, 64*1024)
	first, err := in.Peek(1)
	if err != nil {
		return
	}
	if first[0] == 0x1f {
		err = serveMembers(channel, in)
	} else {
		err = serveLines(channel, in)
	}
	if !errors.Is(err, io.EOF) {
		log.Print(err)
	}
}

func isKorv(r *ssh.Request) bool {
	var subsystem struct{ Name string }
	return r.Type == "subsystem" && ssh.Unmarshal(r.Payload, &subsystem) == nil && subsystem.Name == "korv"
}

func serveSession(channel ssh.Channel, requests <-chan *ssh.Request) {
	for r := range requests {
		known := isKorv(r)
		r.Reply(known, nil)
		if known {
			go serveChannel(channel)
		}
	}
}

func accept(opened ssh.NewChannel) {
	kind := opened.ChannelType()
	if kind != "session" && kind != "direct-tcpip" {
		opened.Reject(ssh.UnknownChannelType, "session or direct-tcpip")
		return
	}
	channel, requests, err := opened.Accept()
	if err != nil {
		return
	}
	if kind == "session" {
		go serveSession(channel, requests)
		return
	}
	go ssh.DiscardRequests(requests)
	go serveChannel(channel)
}

func serve(socket net.Conn, config *ssh.ServerConfig) {
	connection, channels, requests, err := ssh.NewServerConn(socket, config)
	if err != nil {
		log.Print(err)
		return
	}
	defer connection.Close()
	go ssh.DiscardRequests(requests)
	for opened := range channels {
		accept(opened)
	}
}

func configure(hostKeyFile, authorizedFile string) *ssh.ServerConfig {
	hostKey, err := os.ReadFile(hostKeyFile)
	check(err)
	signer, err := ssh.ParsePrivateKey(hostKey)
	check(err)
	line, err := os.ReadFile(authorizedFile)
	check(err)
	authorized, _, _, _, err := ssh.ParseAuthorizedKey(line)
	check(err)
	config := &ssh.ServerConfig{
		Config: ssh.Config{Ciphers: []string{"aes128-gcm@openssh.com"}},
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if bytes.Equal(key.Marshal(), authorized.Marshal()) {
				return nil, nil
			}
			return nil, errors.New("an unknown key")
		},
	}
	config.AddHostKey(signer)
	return config
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	hostKey := flag.String("host-key", "", "the host key's file")
	authorized := flag.String("authorized-key", "", "the client's public key")
	flag.Parse()
	config := configure(*hostKey, *authorized)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Printf("listening on 127.0.0.1 port %d\n", listener.Addr().(*net.TCPAddr).Port)
	for {
		socket, err := listener.Accept()
		check(err)
		go serve(socket, config)
	}
}
