// An impersonating proxy of the API server, in the form that such proxies have in Go: net/http serves, and
// httputil.ReverseProxy forwards, flushing at once. HTTP/2 upstream, but HTTP/1.1 for upgrades, which Go can't carry
// over HTTP/2.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"strings"
)

type header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type configuration struct {
	Listen        string   `json:"listen"`
	Upstream      string   `json:"upstream"`
	Name          string   `json:"name"`
	CA            string   `json:"ca"`
	Certificate   string   `json:"certificate"`
	Key           string   `json:"key"`
	Strip         []string `json:"strip"`
	StripPrefixes []string `json:"stripPrefixes"`
	Set           []header `json:"set"`
}

// byUpgrade sends upgrades over HTTP/1.1 and everything else over HTTP/2.
type byUpgrade struct {
	http1, http2 http.RoundTripper
}

func (transports byUpgrade) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Header.Get("Upgrade") != "" {
		return transports.http1.RoundTrip(request)
	}
	return transports.http2.RoundTrip(request)
}

func main() {
	file := flag.String("config", "", "the configuration, JSON")
	version := flag.Bool("version", false, "say which Go built this, and end")
	flag.Parse()
	if *version {
		fmt.Println(runtime.Version())
		return
	}
	if err := serve(*file); err != nil {
		log.Fatal(err)
	}
}

func serve(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var config configuration
	if err := json.Unmarshal(text, &config); err != nil {
		return err
	}
	ca, err := os.ReadFile(config.CA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return fmt.Errorf("%s holds no certificate", config.CA)
	}

	runtime.GOMAXPROCS(1)
	target := &url.URL{Scheme: "https", Host: config.Upstream}
	proxy := &httputil.ReverseProxy{
		Transport:     byUpgrade{http1: transport(config, roots, false), http2: transport(config, roots, true)},
		FlushInterval: -1,
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			request.Out.Host = config.Name
			rewrite(config, request.Out.Header)
		},
	}
	server := &http.Server{
		Addr:      config.Listen,
		Handler:   proxy,
		ErrorLog:  log.New(os.Stderr, "reverseproxy: ", 0),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	return server.ListenAndServeTLS(config.Certificate, config.Key)
}

func rewrite(config configuration, fields http.Header) {
	for _, name := range config.Strip {
		fields.Del(name)
	}
	for name := range fields {
		for _, prefix := range config.StripPrefixes {
			if strings.HasPrefix(name, prefix) {
				fields.Del(name)
			}
		}
	}
	for _, field := range config.Set {
		fields.Add(field.Name, field.Value)
	}
}

func transport(config configuration, roots *x509.CertPool, http2 bool) *http.Transport {
	result := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, ServerName: config.Name, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   http2,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 512,
	}
	if !http2 {
		// A map that isn't nil keeps HTTP/2 from being negotiated.
		result.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return result
}
